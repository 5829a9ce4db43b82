//! The two listeners, and what is answered at which path.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{Inside, answers};
use crate::telemetry::Exposition;

/// How soon a door that cannot be opened is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Who is served at once at each door. Whoever comes then takes the place of who came first: so nobody
/// can keep others out by saying nothing.
const AT_ONCE: usize = 64;

/// How long somebody may take to say what he wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection lasts, whatever is said on it.
const LONGEST: Duration = Duration::from_secs(10);

/// The largest request, in bytes.
const LARGEST: usize = 64 << 10;

/// Serves metrics and probes.
pub(super) async fn tcp(inside: Inside, listen: SocketAddr) {
    let why = |error: &io::Error| {
        format!(
            "metrics and probes cannot be served at {listen} ({error}): free it, or choose another \
             by --listen"
        )
    };
    let listener = opened(&inside, "metrics", || TcpListener::bind(listen), why).await;
    let mut guests = Guests::default();
    loop {
        guests.welcome(listener.accept().await, &inside, false).await;
    }
}

/// Serves those who run commands of the agent on its node.
pub(super) async fn unix(inside: Inside, path: PathBuf) {
    let open = || async {
        let listener = bind(&path).await?;
        // By this the agent knows its own again.
        let own = fs::symlink_metadata(&path).map(|own| (own.dev(), own.ino()));
        *inside.socket.lock().unwrap_or_else(PoisonError::into_inner) = own.ok();
        Ok(listener)
    };
    let why = |error: &io::Error| {
        format!(
            "`detector status` and its like find nobody at {} ({error}): choose another by --socket, \
             or make its folder writable",
            path.display()
        )
    };
    let listener = opened(&inside, "socket", open, why).await;
    let mut guests = Guests::default();
    loop {
        guests.welcome(listener.accept().await, &inside, true).await;
    }
}

/// Opens a door, however often that takes; health says why it is not open yet.
async fn opened<L, F: Future<Output = io::Result<L>>>(
    inside: &Inside,
    capability: &'static str,
    open: impl Fn() -> F,
    why: impl Fn(&io::Error) -> String,
) -> L {
    inside.health.expect(capability);
    loop {
        match open().await {
            Ok(listener) => {
                inside.health.restore(capability);
                return listener;
            }
            Err(error) => inside.health.degrade(capability, &why(&error)),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Those who are served, in the order in which they came.
#[derive(Default)]
struct Guests(VecDeque<JoinHandle<()>>);

impl Guests {
    /// Serves whoever came to a door.
    async fn welcome<S, A>(&mut self, came: io::Result<(S, A)>, inside: &Inside, private: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match came {
            Ok((stream, _)) => self.admit(converse(stream, inside.clone(), private)),
            // Out of descriptors: somebody will give one back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }

    fn admit(&mut self, conversation: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|guest| !guest.is_finished());
        if self.0.len() >= AT_ONCE
            && let Some(first) = self.0.pop_front()
        {
            first.abort();
        }
        self.0.push_back(tokio::spawn(async move {
            // Whoever is not done by then comes again.
            let _ = tokio::time::timeout(LONGEST, conversation).await;
        }));
    }
}

/// Makes the socket. One that is there is another agent's, if anybody answers behind it; else it was
/// left by one that was killed.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => return Err(io::Error::other("another agent serves it")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("there is a file, which is no socket"));
            }
            fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    // Under another name until its rights are set: between the two nobody else must get in.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, inside: Inside, private: bool) {
    let service = service_fn(move |request| {
        let inside = inside.clone();
        async move { Ok::<_, Infallible>(answer(request, &inside, private).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    // Whoever hangs up in the middle is nobody's concern.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    inside: &Inside,
    private: bool,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let get = parts.method == Method::GET || parts.method == Method::HEAD;
    match parts.uri.path() {
        "/metrics" if get => {
            let accepts = parts.headers.get_all(ACCEPT).iter();
            let open = accepts
                .filter_map(|value| value.to_str().ok())
                .any(|value| value.contains("application/openmetrics-text"));
            metrics(inside, open)
        }
        "/livez" if get => match inside.pulse.stuck() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(silent) => {
                let why = format!("the loop has been silent for {} s\n", silent.as_secs());
                text(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        },
        "/readyz" if get => {
            let awaited = inside.pulse.awaited();
            if inside.pulse.is_ready() {
                text(StatusCode::OK, "ok\n".to_owned())
            } else {
                let why = format!("not yet told of: {}\n", awaited.join(", "));
                text(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        }
        "/v1/status" if get && private => answers::status(inside).await,
        "/v1/findings" if get && private => answers::findings(inside).await,
        "/v1/explain" if get && private => answers::explain(inside, &query).await,
        "/v1/acknowledge" if parts.method == Method::POST && private => {
            match Limited::new(body, LARGEST).collect().await {
                Ok(body) => answers::acknowledge(inside, &body.to_bytes()).await,
                Err(error) => answers::wrong(&format!("the request cannot be read: {error}")),
            }
        }
        "/" if get => {
            let paths = if private {
                "/metrics /livez /readyz /v1/status /v1/findings /v1/explain?address= /v1/acknowledge\n"
            } else {
                "/metrics /livez /readyz\n"
            };
            text(StatusCode::OK, paths.to_owned())
        }
        "/metrics" | "/livez" | "/readyz" => {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
        }
        _ => text(StatusCode::NOT_FOUND, "nothing here: see /\n".to_owned()),
    }
}

fn metrics(inside: &Inside, open: bool) -> Response<Full<Bytes>> {
    inside.health.tick();
    let (exposition, kind) = if open {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (Exposition::OpenMetrics, kind)
    } else {
        (Exposition::Text, "text/plain; version=0.0.4; charset=utf-8")
    };
    reply(StatusCode::OK, kind, inside.telemetry.expose(exposition))
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

pub(super) fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
