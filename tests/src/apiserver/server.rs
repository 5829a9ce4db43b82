//! HTTP: connections, requests, answers.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::fault::{Connections, Order};
use super::kind::Kind;
use super::options::{Options, Query};
use super::refusal::Refusal;
use super::shape::Shape;
use super::target::Target;
use super::traffic::Verb;
use super::watch::{self, Body, whole};
use super::write::{self, Deletion, Part};
use super::{World, discovery, read};
use crate::door::Door;

/// What a real server takes at most, in bytes.
const LARGEST_BODY: usize = 3 * 1024 * 1024;

const JSON: &str = "application/json";

/// Serves until it is told to stop.
pub(super) async fn serve(
    mut door: Door,
    world: Arc<World>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Stopped in words, or because whoever could say so is gone.
            _ = &mut stop => return,
            Some(_) = connections.join_next() => {}
            Some(Order { wanted, done }) = orders.recv() => {
                // Whoever gave the order waits for this; where they are gone nobody minds.
                let _ = done.send(obey(&mut door, &world, wanted));
            }
            accepted = door.accept() => {
                // An error is about the connection that was to be, and its client sees it too.
                if let Ok(stream) = accepted {
                    world.traffic.connected();
                    connections.spawn(connection(stream, Arc::clone(&world)));
                }
            }
        }
    }
}

/// Treats connections as wanted from now on.
fn obey(door: &mut Door, world: &World, wanted: Connections) -> anyhow::Result<()> {
    match wanted {
        Connections::Refuse => door.shut()?,
        Connections::Serve | Connections::Reset => door.open()?,
    }
    world.faults.treat_connections(wanted);
    Ok(())
}

/// Serves one connection until it ends, or until connections are to be served no more.
async fn connection(stream: TcpStream, world: Arc<World>) {
    let mut wanted = world.faults.watch_connections();
    // Spares tests Nagle's delay; where it fails they are slower, no more.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(Arc::clone(&world), request));
    let mut serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client that goes away in the middle is no concern of the server's.
        _ = &mut serving => {}
        _ = wanted.wait_for(|wanted| *wanted != Connections::Serve) => {
            // A socket without linger is reset when it is dropped; where this fails it is closed.
            let _ = serving.into_parts().io.into_inner().set_zero_linger();
        }
    }
}

async fn answer(
    world: Arc<World>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let serving = *world.faults.watch_connections().borrow() == Connections::Serve;
    if !serving {
        // The connection is about to be reset; this request came in before that was seen.
        return pending().await;
    }
    let response = match dispatch(&world, request).await {
        Ok(response) => response,
        Err(refusal) => refused(&world, &refusal),
    };
    Ok(response)
}

async fn dispatch(
    world: &Arc<World>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let Some(target) = Target::parse(&path) else {
        return about_the_server(world, request.method(), &path);
    };
    let target = target.inspect_err(|_| world.traffic.unknown(&path))?;
    let query = Query::new(request.uri().query());
    let verb = verb(request.method(), &target, query.flag("watch")?)?;
    world.traffic.asked(verb, target.kind);
    let (delay, planned) = world.faults.strike(verb, target.kind.plural);
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    if let Some(refusal) = planned {
        return Err(refusal);
    }
    query.refuse_unserved()?;
    match verb {
        Verb::Get | Verb::List | Verb::Watch => {
            let shape = Shape::accepted(header(request.headers(), &ACCEPT))?;
            read(world, verb, target, &query, shape)
        }
        _ => {
            let (head, body) = request.into_parts();
            let patch_type = header(&head.headers, &CONTENT_TYPE).unwrap_or_default().to_owned();
            let body = parse(body).await?;
            write(world, verb, &target, &query, &patch_type, body)
        }
    }
}

fn about_the_server(world: &World, method: &Method, path: &str) -> Result<Response<Body>, Refusal> {
    if method != Method::GET {
        return Err(Refusal::method_not_allowed());
    }
    if matches!(path, "/readyz" | "/livez" | "/healthz") {
        return Ok(respond(200, "text/plain", whole(Bytes::from_static(b"ok"))));
    }
    let Some(body) = discovery::answer(path) else {
        world.traffic.unknown(path);
        return Err(Refusal::unknown_path());
    };
    Ok(json(world, 200, &body))
}

fn verb(method: &Method, target: &Target, watch: bool) -> Result<Verb, Refusal> {
    match (method, &target.name, watch) {
        (&Method::GET, None, false) => Ok(Verb::List),
        (&Method::GET, None, true) => Ok(Verb::Watch),
        (&Method::GET, Some(_), false) => Ok(Verb::Get),
        (&Method::GET, Some(_), true) => Err(Refusal::bad_request(
            "watch a collection with fieldSelector=metadata.name instead of an object",
        )),
        // All namespaces at once can be read only.
        (&Method::POST, None, _) if target.kind.namespaced && target.namespace.is_none() => {
            Err(Refusal::method_not_allowed())
        }
        (&Method::POST, None, _) => Ok(Verb::Create),
        (&Method::PUT, Some(_), _) => Ok(Verb::Update),
        (&Method::PATCH, Some(_), _) => Ok(Verb::Patch),
        (&Method::DELETE, Some(_), _) if target.part == Part::Main => Ok(Verb::Delete),
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn read(
    world: &Arc<World>,
    verb: Verb,
    target: Target,
    query: &Query,
    shape: Shape,
) -> Result<Response<Body>, Refusal> {
    if verb == Verb::Get {
        let version = query.number("resourceVersion")?;
        let object = read::get(&world.store(), &target, version, shape)?;
        return Ok(json(world, 200, &object));
    }
    let options = Options::parse(target.kind, query, verb == Verb::Watch)?;
    if verb == Verb::List {
        let list = read::list(&world.store(), &target, &options, shape)?;
        return Ok(json(world, 200, &list));
    }
    let body = watch::open(world, target, options, shape)?;
    Ok(respond(200, JSON, body))
}

fn write(
    world: &Arc<World>,
    verb: Verb,
    target: &Target,
    query: &Query,
    patch_type: &str,
    body: Value,
) -> Result<Response<Body>, Refusal> {
    let store = &mut world.store();
    let (code, object) = match verb {
        Verb::Create => (201, write::create(store, target.kind, target.namespace(), body)?),
        Verb::Update => (200, write::replace(store, &target.key()?, target.part, body)?),
        Verb::Patch => {
            let merges = ["application/merge-patch+json", "application/strategic-merge-patch+json"];
            if !merges.contains(&patch_type) {
                return Err(Refusal::unsupported_patch(patch_type));
            }
            (200, write::patch(store, &target.key()?, target.part, &body)?)
        }
        _ => {
            let how = Deletion::of(&body, query.number("gracePeriodSeconds")?);
            let last = write::delete(store, &target.key()?, &how)?;
            (200, if target.kind.told_when_deleted() { last } else { deleted(target.kind, &last) })
        }
    };
    Ok(json(world, code, &object))
}

/// What most kinds answer to a deletion.
fn deleted(kind: &Kind, last: &Value) -> Value {
    let metadata = &last["metadata"];
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": metadata["name"], "kind": kind.plural, "uid": metadata["uid"] },
    });
    if !kind.group.is_empty() {
        status["details"]["group"] = json!(kind.group);
    }
    status
}

/// Reads a body of JSON; an empty one is null.
async fn parse(body: Incoming) -> Result<Value, Refusal> {
    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let bytes = body.map_err(|_| Refusal::too_large(LARGEST_BODY))?.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn refused(world: &World, refusal: &Refusal) -> Response<Body> {
    world.traffic.refused(refusal.code);
    let mut response = json(world, refusal.code, &refusal.to_status());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn json(world: &World, code: u16, body: &Value) -> Response<Body> {
    let bytes = Bytes::from(body.to_string());
    world.traffic.sent(bytes.len());
    respond(code, JSON, whole(bytes))
}

fn respond(code: u16, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    // A test may plan an answer with any number; one that is no HTTP code is the test's own fault.
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
