//! As much of HTTP/1.1 as a test needs to ask a server, and to hear what a client asks.

mod wire;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::wire::{has_stated_body, read_body, read_head, send};
use super::place::Place;
use crate::netns::Namespace;

/// How long a server behind a socket file may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of a head, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Such as GET.
    pub method: String,
    /// The path, and the query where there is one.
    pub target: String,
    /// The head; what the body needs is added when the request is sent.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// The head; what the body needs is added when the answer is sent.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks a server, from the namespace where one is given.
pub fn over_tcp(
    namespace: Option<&Namespace>,
    addr: SocketAddr,
    request: &Request,
) -> Result<Answer> {
    ask(Place::of(namespace)?.connect(addr)?, request)
}

/// Asks a server behind a socket file.
pub fn over_unix(path: &Path, request: &Request) -> Result<Answer> {
    let stream = UnixStream::connect(path)
        .with_context(|| format!("cannot connect to {}", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    ask(stream, request)
}

/// Asks by a connection that is used for nothing else.
pub fn ask(stream: impl Read + Write, request: &Request) -> Result<Answer> {
    let mut stream = BufReader::new(stream);
    let asked = || format!("{} {}", request.method, request.target);
    request.write(stream.get_mut()).with_context(|| format!("cannot send {}", asked()))?;
    Answer::read(&mut stream).with_context(|| format!("no answer to {}", asked()))
}

// === impl Headers ===

impl Headers {
    /// The first value of this name, in whatever case that is written.
    pub fn get(&self, name: &str) -> Option<&str> {
        let named = |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.0.iter().find(named).map(|(_, value)| value.as_str())
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn add(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }
}

// === impl Request ===

impl Request {
    /// A GET.
    pub fn get(target: &str) -> Self {
        let headers = Headers::default();
        Self { method: "GET".to_owned(), target: target.to_owned(), headers, body: Vec::new() }
    }

    /// A POST of JSON.
    pub fn post(target: &str, body: &Value) -> Self {
        let method = "POST".to_owned();
        let body = body.to_string().into_bytes();
        Self { method, body, ..Self::get(target) }.with("Content-Type", "application/json")
    }

    /// The same with another line in its head.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.add(name, value);
        self
    }

    /// The body, where it is JSON.
    pub fn json(&self) -> Result<Value> {
        json(&self.body)
    }

    /// The next request of a client; `None` where it has gone.
    pub(super) fn read(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let Some((start, headers)) = read_head(reader)? else { return Ok(None) };
        let mut words = start.split(' ');
        let (method, target) = words.next().zip(words.next()).context("not a request")?;
        // A request that says nothing of a body has none.
        let body =
            if has_stated_body(&headers) { read_body(reader, &headers)? } else { Vec::new() };
        Ok(Some(Self { method: method.to_owned(), target: target.to_owned(), headers, body }))
    }

    fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let mut start = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if self.headers.get("host").is_none() {
            start += "Host: localhost\r\n";
        }
        start += "Connection: close\r\n";
        send(writer, start, &self.headers, &self.body)
    }
}

// === impl Answer ===

impl Answer {
    /// An answer with this status, and nothing more.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Headers::default(), body: Vec::new() }
    }

    /// The same with another line in its head.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.add(name, value);
        self
    }

    /// The body, where it is JSON.
    pub fn json(&self) -> Result<Value> {
        json(&self.body)
    }

    /// The body, where it is text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer of a server that serves nothing more by this connection.
    fn read(reader: &mut impl BufRead) -> Result<Self> {
        loop {
            let (start, headers) =
                read_head(reader)?.context("the server closes the connection")?;
            let status = start.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
            let status = status.with_context(|| format!("not an answer: {start:?}"))?;
            let body = match status {
                // The answer proper comes after it.
                100..200 => continue,
                204 | 304 => Vec::new(),
                _ => read_body(reader, &headers)?,
            };
            return Ok(Self { status, headers, body });
        }
    }

    /// Sends it.
    pub(super) fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        send(writer, format!("HTTP/1.1 {} \r\n", self.status), &self.headers, &self.body)
    }
}

fn json(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(body)))
}
