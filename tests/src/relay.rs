//! A relay of TCP connections: it counts what goes through, and can break it off.
//!
//! It is made of a listener, which may have been bound in another network namespace, and connects
//! from the namespace of whoever starts it. So a node in a namespace of its own reaches the API
//! server of the host, and a test decides whether it does.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::door::Door;

/// A running relay. It ends, and closes all its connections, when it is dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    counters: Arc<Counters>,
    orders: mpsc::UnboundedSender<Order>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What has gone through a relay so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were taken.
    pub connections: u64,
    /// Bytes from clients to the server.
    pub to_server: u64,
    /// Bytes from the server to clients.
    pub to_clients: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    to_server: AtomicU64,
    to_clients: AtomicU64,
}

/// What the relay's thread has to do, and where it says how that went.
#[derive(Debug)]
struct Order {
    what: What,
    done: SyncSender<Result<()>>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Cut,
    Refuse,
    Serve,
}

// === impl Relay ===

impl Relay {
    /// Relays what comes in by the listener to a server.
    pub fn start(listener: TcpListener, server: SocketAddr) -> Result<Self> {
        let addr = listener.local_addr().context("cannot read the listener's address")?;
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        let counters = Arc::new(Counters::default());
        let (orders, ordered) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the relay's runtime")?;
        let door = {
            let _inside = runtime.enter();
            Door::new(listener, addr)?
        };
        let relaying = relay(door, server, Arc::clone(&counters), ordered, stopped);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || runtime.block_on(relaying))
            .context("cannot start the relay's thread")?;
        Ok(Self { addr, counters, orders, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has gone through so far.
    pub fn counts(&self) -> Counts {
        self.counters.now()
    }

    /// Resets all connections. New ones are taken.
    pub fn cut(&self) -> Result<()> {
        self.order(What::Cut)
    }

    /// Resets all connections and listens no more, until [`Relay::serve`].
    pub fn refuse(&self) -> Result<()> {
        self.order(What::Refuse)
    }

    /// Listens again.
    pub fn serve(&self) -> Result<()> {
        self.order(What::Serve)
    }

    /// It is in force when this returns.
    fn order(&self, what: What) -> Result<()> {
        let (done, answer) = sync_channel(1);
        self.orders.send(Order { what, done }).ok().context("the relay's thread has ended")?;
        answer.recv().context("the relay's thread has ended")?
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Both fail only when the thread is gone already, and then there is nothing to stop.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Counters ===

impl Counters {
    fn now(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connections: read(&self.connections),
            to_server: read(&self.to_server),
            to_clients: read(&self.to_clients),
        }
    }
}

/// Relays until it is told to stop.
async fn relay(
    mut door: Door,
    server: SocketAddr,
    counters: Arc<Counters>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let (cut, _) = watch::channel(());
    loop {
        tokio::select! {
            // Stopped in words, or because whoever could say so is gone.
            _ = &mut stop => return,
            Some(_) = connections.join_next() => {}
            Some(Order { what, done }) = orders.recv() => {
                let obeyed = match what {
                    What::Cut => Ok(()),
                    What::Refuse => door.shut(),
                    What::Serve => door.open(),
                };
                if matches!(what, What::Cut | What::Refuse) {
                    cut.send_replace(());
                    while connections.join_next().await.is_some() {}
                }
                // Whoever gave the order waits for this; where they are gone nobody minds.
                let _ = done.send(obeyed);
            }
            accepted = door.accept() => {
                // An error is about the connection that was to be, and its client sees it too.
                if let Ok(client) = accepted {
                    counters.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(connection(
                        client,
                        server,
                        Arc::clone(&counters),
                        cut.subscribe(),
                    ));
                }
            }
        }
    }
}

/// Relays one connection until one side ends it, or until it is cut.
async fn connection(
    client: TcpStream,
    server: SocketAddr,
    counters: Arc<Counters>,
    mut cut: watch::Receiver<()>,
) {
    let mut client = Counted { stream: client, counters };
    let relaying = async {
        let mut upstream = TcpStream::connect(server).await?;
        // Spare tests Nagle's delay; where it fails they are slower, no more.
        let _ = upstream.set_nodelay(true);
        let _ = client.stream.set_nodelay(true);
        copy_bidirectional(&mut client, &mut upstream).await
    };
    let ended_well = tokio::select! {
        ended = relaying => ended.is_ok(),
        _ = cut.changed() => false,
    };
    if !ended_well {
        // A socket without linger is reset when it is dropped; where this fails it is closed.
        let _ = client.stream.set_zero_linger();
    }
}

/// The client's side of a connection.
struct Counted {
    stream: TcpStream,
    counters: Arc<Counters>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.counters.to_server.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.counters.to_clients.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
