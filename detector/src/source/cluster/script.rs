//! An API server that says what a test has written down, and tells what it was asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future, stream};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// What is said to one request.
pub(super) enum Reply {
    /// A whole answer.
    Whole(u16, Value),
    /// The lines of a watch, and how it goes on.
    Watch(Vec<Value>, Then),
    /// A watch with a line that is no JSON.
    Garbage,
    /// No answer ever.
    Silence,
}

/// How a watch goes on after its lines.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// It ends as the server ends watches.
    End,
    /// The connection is reset.
    Reset,
    /// Nothing more is said.
    Hang,
}

type Said = UnsyncBoxBody<Bytes, io::Error>;

/// The requests so far, each its path with its query.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// A client of a server that gives these replies in this order, and silence after them.
pub(super) fn server(replies: impl IntoIterator<Item = Reply>) -> (Client, Asked) {
    let replies = Mutex::new(replies.into_iter().collect::<VecDeque<_>>());
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.uri().to_string());
        let reply = replies.lock().unwrap().pop_front().unwrap_or(Reply::Silence);
        async move { answer(reply).await }
    });
    (Client::new(service, "default"), asked)
}

async fn answer(reply: Reply) -> Result<Response<Said>, Infallible> {
    let (code, body) = match reply {
        Reply::Silence => future::pending().await,
        Reply::Whole(code, value) => (code, lines(stream::iter([Ok(value.to_string().into())]))),
        Reply::Garbage => (200, lines(stream::iter([Ok("<html>\n".into())]))),
        Reply::Watch(events, then) => {
            let events = events.into_iter().map(|event| Ok(format!("{event}\n").into()));
            let events = stream::iter(events);
            let reset = || Err(io::ErrorKind::ConnectionReset.into());
            let body = match then {
                Then::End => lines(events),
                Then::Reset => lines(events.chain(stream::iter([reset()]))),
                Then::Hang => lines(events.chain(stream::pending())),
            };
            (200, body)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    Ok(response)
}

fn lines(lines: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Said {
    StreamBody::new(lines.map(|line| line.map(Frame::data))).boxed_unsync()
}

/// A page of objects.
pub(super) fn page(version: &str, token: &str, items: &[Value]) -> Reply {
    let metadata = json!({"resourceVersion": version, "continue": token});
    Reply::Whole(200, json!({"kind": "List", "metadata": metadata, "items": items}))
}

/// A failure as the server words it.
pub(super) fn failure(code: u16) -> Reply {
    Reply::Whole(code, status(code))
}

/// An event of a watch.
pub(super) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The event that ends a watch whose place the server has forgotten, and its like.
pub(super) fn error_event(code: u16) -> Value {
    event("ERROR", &status(code))
}

fn status(code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "so it is", "reason": "Because", "code": code,
    })
}
