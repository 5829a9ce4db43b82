//! The listening socket, which can be shut and opened again: always the same one, so that it stays
//! on its port and in the network namespace that it was made in.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{Backlog, Shutdown, SockaddrStorage, bind, listen, shutdown};
use tokio::net::{TcpListener, TcpStream};

/// Where connections come in.
#[derive(Debug)]
pub(crate) struct Door {
    socket: std::net::TcpListener,
    addr: SocketAddr,
    /// Another handle of the socket, registered with the runtime. It lives only while the socket
    /// listens: a runtime that has once seen a socket shut down takes that to be for ever, and
    /// from then on tries to accept without a pause and without an end.
    open: Option<TcpListener>,
}

// === impl Door ===

impl Door {
    /// An open door; to be called within a runtime, with a socket that does not block.
    pub(crate) fn new(socket: std::net::TcpListener, addr: SocketAddr) -> Result<Self> {
        let open = Some(watched(&socket)?);
        Ok(Self { socket, addr, open })
    }

    /// The next connection; none comes while the door is shut.
    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        match &self.open {
            Some(listener) => listener.accept().await.map(|(stream, _)| stream),
            None => pending().await,
        }
    }

    /// Listens again. Does nothing to an open door.
    pub(crate) fn open(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        match bind(self.socket.as_raw_fd(), &SockaddrStorage::from(self.addr)) {
            // A port that was asked for by number stays bound; one that was given by the kernel
            // has to be asked for.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error).context("cannot bind the listener's port again"),
        }
        listen(&self.socket, Backlog::MAXALLOWABLE).context("cannot listen again")?;
        self.open = Some(watched(&self.socket)?);
        Ok(())
    }

    /// Listens no more, and resets what waits to be accepted. Does nothing to a shut door.
    pub(crate) fn shut(&mut self) -> Result<()> {
        if self.open.take().is_none() {
            return Ok(());
        }
        shutdown(self.socket.as_raw_fd(), Shutdown::Both).context("cannot shut the listener down")
    }
}

fn watched(socket: &std::net::TcpListener) -> Result<TcpListener> {
    let handle = socket.try_clone().context("cannot duplicate the listener")?;
    TcpListener::from_std(handle).context("cannot watch the listener")
}
