//! A receiver of webhooks: it records what it is asked, and answers, or fails, as it is told.

mod conversation;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use detector_core::time::BootTime;
use nix::sys::socket::{Shutdown, shutdown};

use self::conversation::{Shared, serve};
use super::http::{Answer, Request};
use super::place::{Place, Port};
use crate::netns::Namespace;

/// How a request is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answered by this.
    Answer(Answer),
    /// Left without an answer until [`Receiver::release`].
    Stall,
    /// Answered by a few bytes, after which the connection ends.
    BreakOff,
}

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The request.
    pub request: Request,
    /// When all of it was there.
    pub at: BootTime,
    /// How it was treated.
    pub manner: Manner,
}

/// A running receiver. It ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
    port: Port,
    place: Place,
}

#[derive(Debug)]
struct Running {
    listener: TcpListener,
    thread: JoinHandle<()>,
}

// === impl Manner ===

impl Manner {
    /// An answer with this status and nothing more.
    pub fn status(status: u16) -> Self {
        Self::Answer(Answer::new(status))
    }
}

// === impl Receiver ===

impl Receiver {
    /// Starts a receiver on loopback of a namespace, or of the test's own. It listens on this port,
    /// or on any where it is zero, and answers 200.
    pub fn start(namespace: Option<&Namespace>, port: u16) -> Result<Self> {
        let place = Place::of(namespace)?;
        let port = Port::reserve(&place, port)?;
        let shared = Arc::new(Shared::new());
        let receiver = Self { shared, running: Mutex::new(None), port, place };
        receiver.restart()?;
        Ok(receiver)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// A URL of it; the path begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// Treats all requests so, after those that [`Receiver::next`] is about.
    pub fn usually(&self, manner: Manner) {
        self.shared.lock().usual = manner;
    }

    /// Treats the next so many requests so, after those for which this was said before.
    pub fn next(&self, times: usize, manner: Manner) {
        self.shared.lock().next.extend(std::iter::repeat_n(manner, times));
    }

    /// Answers 200 to all that was stalled, and to all that comes.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.next.clear();
        state.usual = Manner::status(200);
        state.releases += 1;
        self.shared.changed.notify_all();
    }

    /// All that was received so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.lock().received.clone()
    }

    /// Gives what was received so far, and forgets it.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.shared.lock().received)
    }

    /// How many connections were taken so far.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Waits until so many requests were received, or more; gives all.
    pub fn wait_for(&self, count: usize, patience: Duration) -> Result<Vec<Received>> {
        self.wait_until(|received| received.len() >= count, patience)
    }

    /// Waits until what was received is as wanted; gives it.
    pub fn wait_until(
        &self,
        wanted: impl Fn(&[Received]) -> bool,
        patience: Duration,
    ) -> Result<Vec<Received>> {
        let (state, end) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), patience, |state| !wanted(&state.received))
            .unwrap_or_else(PoisonError::into_inner);
        if end.timed_out() {
            bail!("not what was waited for was received in {patience:?}: {:#?}", state.received);
        }
        Ok(state.received.clone())
    }

    /// Ends all connections and listens no more: new ones are refused.
    pub fn stop(&self) -> Result<()> {
        let Some(Running { listener, thread }) = self.running().take() else { return Ok(()) };
        self.shared.lock().serves = false;
        self.shared.changed.notify_all();
        // It wakes the thread, which accepts by another handle of the same socket.
        shutdown(listener.as_raw_fd(), Shutdown::Both).context("cannot shut the listener down")?;
        thread.join().ok().context("the receiver's thread panicked")
    }

    /// Listens again at the same address, with all that was received and said before.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        let addr = self.addr();
        let listener =
            self.place.within(|| TcpListener::bind(addr))?.context("cannot listen again")?;
        let accepting = listener.try_clone().context("cannot duplicate the listener")?;
        self.shared.lock().serves = true;
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || serve(&accepting, &shared))
            .context("cannot start the receiver's thread")?;
        *self.running() = Some(Running { listener, thread });
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Where it cannot be stopped its threads end with the test.
        let _ = self.stop();
    }
}
