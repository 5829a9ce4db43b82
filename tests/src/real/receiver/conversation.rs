//! The receiver's conversations with its clients, and what they have in common.

use std::collections::VecDeque;
use std::io::{BufReader, ErrorKind, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::{Manner, Received};
use crate::agent::now;
use crate::real::http::{Answer, Request};

/// What the receiver and its threads share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Told of whatever changes in the state.
    pub(super) changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) received: Vec<Received>,
    pub(super) connections: usize,
    /// How the next requests are treated, one each.
    pub(super) next: VecDeque<Manner>,
    /// How those after them are.
    pub(super) usual: Manner,
    /// How often stalled requests were released: those that wait see that it has grown.
    pub(super) releases: u64,
    /// Whether it is not being stopped.
    pub(super) serves: bool,
}

/// How one request has to be treated, and how often others had been released when it came.
struct Turn {
    manner: Manner,
    releases: u64,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            received: Vec::new(),
            connections: 0,
            next: VecDeque::new(),
            usual: Manner::status(200),
            releases: 0,
            serves: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request, and says how to treat it.
    fn receive(&self, request: Request) -> Turn {
        let at = now();
        let mut state = self.lock();
        let manner = state.next.pop_front().unwrap_or_else(|| state.usual.clone());
        state.received.push(Received { request, at, manner: manner.clone() });
        self.changed.notify_all();
        Turn { manner, releases: state.releases }
    }

    /// Waits until a stalled request is released; whether it was, and not the receiver stopped.
    fn stall(&self, turn: &Turn) -> bool {
        let waits = |state: &mut State| state.releases == turn.releases && state.serves;
        let state =
            self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        state.serves
    }
}

/// Takes connections until the listener is shut down; ends them all then.
pub(super) fn serve(listener: &TcpListener, shared: &Shared) {
    std::thread::scope(|scope| {
        let mut streams = Vec::new();
        // What cannot be accepted is a connection that its client has given up, or the listener has
        // been shut down.
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => Arc::new(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(_) => break,
            };
            shared.lock().connections += 1;
            streams.push(Arc::clone(&stream));
            scope.spawn(move || {
                // A client that breaks off, or speaks something else, gets no answer.
                let _ = converse(&stream, shared);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Takes the requests of one connection.
fn converse(stream: &TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = Request::read(&mut reader)? {
        let is_last = request.headers.get("connection").is_some_and(|word| word == "close");
        let turn = shared.receive(request);
        match &turn.manner {
            Manner::Answer(answer) => answer.write(&mut writer)?,
            Manner::Stall if shared.stall(&turn) => Answer::new(200).write(&mut writer)?,
            Manner::Stall => return Ok(()),
            // Too little to be taken for any answer.
            Manner::BreakOff => return Ok(writer.write_all(b"HTTP/1.1 2")?),
        }
        if is_last {
            return Ok(());
        }
    }
    Ok(())
}
