//! Where a component runs and is asked: the network namespace of the test, or one that it made.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

use crate::netns::Namespace;

/// How long a server may take to answer, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace, held open for as long as the component that lives in it may be started
/// again.
#[derive(Clone, Debug)]
pub(super) struct Place(Option<Arc<OwnedFd>>);

/// A port of loopback that nobody else gets as long as this lives, while a server that allows
/// addresses to be used again may listen on it: it is bound and does not listen. So a server that
/// is stopped leaves a port that refuses, and comes back to the same.
#[derive(Debug)]
pub(super) struct Port {
    addr: SocketAddr,
    _socket: OwnedFd,
}

// === impl Place ===

impl Place {
    /// The namespace, or the test's own where there is none.
    pub(super) fn of(namespace: Option<&Namespace>) -> Result<Self> {
        let open = |namespace: &Namespace| -> Result<Arc<OwnedFd>> {
            let file = File::open(namespace.path()).context("cannot open a network namespace")?;
            Ok(Arc::new(file.into()))
        };
        Ok(Self(namespace.map(open).transpose()?))
    }

    /// Makes the command run here.
    pub(super) fn hold(&self, command: &mut Command) {
        let Some(file) = self.0.clone() else { return };
        let enter = move || -> io::Result<()> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }

    /// Does `work` here.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(file) = &self.0 else { return Ok(work()) };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .context("cannot enter a network namespace")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A connection from here, which fails rather than wait for ever.
    pub(super) fn connect(&self, addr: SocketAddr) -> Result<TcpStream> {
        let stream = self
            .within(|| TcpStream::connect_timeout(&addr, PATIENCE))?
            .with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

// === impl Port ===

impl Port {
    /// Reserves a port of loopback at a place: this one, or any where it is zero.
    pub(super) fn reserve(place: &Place, port: u16) -> Result<Self> {
        let reserve = || -> nix::Result<(OwnedFd, SockaddrIn)> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            // Linux lets another socket listen where this one is, when both say so.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
            let addr = getsockname(socket.as_raw_fd())?;
            Ok((socket, addr))
        };
        let (socket, addr) = place.within(reserve)?.context("cannot reserve a port of loopback")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port()));
        Ok(Self { addr, _socket: socket })
    }

    /// Its address.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}
