//! Servers that findings are posted to, by HTTP or HTTPS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use crate::config::outlets::{Address, Remote};
use crate::text::printable;

/// How long a server may take for one message.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first pause after a failure, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

/// So much of what a server answers is read, in bytes: for the log.
const ANSWER: usize = 64 << 10;

/// Why something was not delivered.
#[derive(Error, Debug)]
#[error("{why}")]
pub(super) struct Failure {
    /// In one line, without anything secret.
    pub(super) why: String,
    /// Whether the server has answered.
    pub(super) answered: bool,
    /// Whether it will never be taken.
    pub(super) permanent: bool,
}

/// A server.
pub(super) struct Server {
    remote: Remote,
    /// Behind the address.
    path: &'static str,
    /// Whether what it answers may show a secret that was sent.
    secretive: bool,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Pauses that get longer with each failure.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

// === impl Failure ===

impl Failure {
    fn temporary(why: impl Into<String>) -> Self {
        Self { why: why.into(), answered: false, permanent: false }
    }
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new() -> Self {
        Self(PAUSE.0)
    }

    /// The next pause, a random part shorter, so that agents do not all come at once.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }
}

// === impl Server ===

impl Server {
    /// A server whose address is followed by `path`. Its certificates are read here, its address and
    /// its token with each message, since those may be replaced at any time. `signed` is whether
    /// messages are signed with a secret.
    pub(super) async fn new(
        remote: Remote,
        path: &'static str,
        signed: bool,
    ) -> Result<Self, Failure> {
        let tls = client_config(remote.ca_file.as_deref()).await.map_err(Failure::temporary)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(PATIENCE));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .build(connector);
        let secretive =
            signed || remote.token_file.is_some() || matches!(remote.at, Address::File(_));
        Ok(Self { remote, path, secretive, client })
    }

    /// Posts a message; waits for the answer no longer than for ten seconds.
    pub(super) async fn post(
        &self,
        body: Bytes,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<(), Failure> {
        let request = self.request(body, headers).await?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                // The address may be a secret, and is not in this.
                Failure::temporary(format!("it cannot be reached: {}", causes(&error)))
            })?;
            let status = response.status();
            if status.is_success() {
                return Ok(());
            }
            // What is wrong with the message itself; all else may be put right at the server.
            let permanent = matches!(status.as_u16(), 400 | 405 | 410 | 411 | 413 | 415 | 422);
            let said = if self.secretive {
                String::new()
            } else {
                let body = Limited::new(response.into_body(), ANSWER).collect().await;
                let said = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                printable(String::from_utf8_lossy(&said).trim(), 200)
            };
            let said = if said.is_empty() { said } else { format!(": {said}") };
            Err(Failure { why: format!("it answers {status}{said}"), answered: true, permanent })
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| {
            Err(Failure::temporary(format!("it did not answer within {} s", PATIENCE.as_secs())))
        })
    }

    async fn request(
        &self,
        body: Bytes,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let url = match &self.remote.at {
            Address::Url(url) => url.to_string(),
            Address::File(path) => {
                let text = secret(path).await?;
                crate::config::value::url(&text)
                    .map_err(|why| Failure::temporary(format!("{}: {why}", path.display())))?
                    .into()
            }
        };
        let url = if self.path.is_empty() { &url } else { url.trim_end_matches('/') };
        let uri: Uri = format!("{url}{}", self.path)
            .parse()
            .map_err(|_| Failure::temporary("its address is no URL"))?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(USER_AGENT, concat!("detector/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        if let Some(path) = &self.remote.token_file {
            let mut token = HeaderValue::from_str(&format!("Bearer {}", secret(path).await?))
                .map_err(|_| Failure::temporary(format!("{}: is no token", path.display())))?;
            token.set_sensitive(true);
            request = request.header(AUTHORIZATION, token);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(Full::new(body)).map_err(|error| Failure::temporary(error.to_string()))
    }
}

/// What a file with a secret holds, without white space around it.
pub(super) async fn secret(path: &Path) -> Result<String, Failure> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| {
        Failure::temporary(format!("{} cannot be read: {error}", path.display()))
    })?;
    Ok(text.trim().to_owned())
}

/// Whom to believe: the certificates in this file, else those of the system. Where the system has
/// none, as in an image that holds this program alone, those that Mozilla's browsers believe.
async fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let wrong = |why: &dyn std::fmt::Display| {
            format!("{} has no certificates that can be used: {why}", path.display())
        };
        let text = tokio::fs::read(path).await.map_err(|error| wrong(&error))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is none in it"));
        }
    } else {
        let load = || rustls_native_certs::load_native_certs().certs;
        let found = tokio::task::spawn_blocking(load).await.unwrap_or_default();
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// An error and what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    printable(&text, 300)
}
