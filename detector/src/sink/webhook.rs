//! Webhooks: each message is posted, in order, until the server has taken it.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use ring::hmac;

use super::outlet::{Delivery, Inlet, Message};
use super::remote::{Backoff, Failure, Server, secret};
use super::shape;
use crate::config::outlets::{Format, Webhook};

/// The header with the signature: `sha256=` and the HMAC of the body in hexadecimal digits, as GitHub
/// signs its own (X-Hub-Signature-256).
const SIGNATURE: HeaderName = HeaderName::from_static("x-detector-signature-256");

/// How often a server may answer that it does not take a message: then it is that message that it
/// does not take, and those behind it get their turn. One that cannot be reached is tried for ever.
const ANSWERS: u32 = 60;

/// Posts until there is no more to post.
pub(super) async fn run(mut inlet: Inlet, webhook: Webhook) {
    let mut backoff = Backoff::new();
    let mut server = None;
    while let Some(delivery) = inlet.next().await {
        let body = body(&delivery, webhook.format);
        let mut answers = 0;
        loop {
            let Err(failure) = post(&mut server, &webhook, body.clone()).await else {
                backoff.reset();
                inlet.delivered(1, delivery.numbers);
                break;
            };
            answers += u32::from(failure.answered);
            if failure.permanent || answers == ANSWERS {
                inlet.failed(1, &failure.why, delivery.numbers);
                break;
            }
            if !failure.answered {
                // Its certificates may have been replaced.
                server = None;
            }
            inlet.retrying(&failure.why);
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

async fn post(server: &mut Option<Server>, webhook: &Webhook, body: Bytes) -> Result<(), Failure> {
    let server = match server {
        Some(server) => server,
        None => server
            .insert(Server::new(webhook.remote.clone(), "", webhook.secret_file.is_some()).await?),
    };
    let mut headers = Vec::new();
    if let Some(path) = &webhook.secret_file {
        headers.push((SIGNATURE, sign(secret(path).await?.as_bytes(), &body)));
    }
    server.post(body, &headers).await
}

fn sign(secret: &[u8], body: &[u8]) -> HeaderValue {
    use std::fmt::Write as _;

    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut signature = "sha256=".to_owned();
    for byte in hmac::sign(&key, body).as_ref() {
        // A String takes every character.
        let _ = write!(signature, "{byte:02x}");
    }
    HeaderValue::from_str(&signature).unwrap_or(HeaderValue::from_static(""))
}

fn body(delivery: &Delivery, format: Format) -> Bytes {
    let value = match (&delivery.message, format) {
        (Message::Report(report), Format::Json) => report.to_value(),
        (Message::Report(report), Format::Slack) => shape::slack::report(report),
        (Message::Report(report), Format::Falco) => shape::falco::report(report),
        (Message::Report(report), Format::Otlp) => shape::otlp::report(report),
        (Message::Summary(summary), Format::Json) => summary.to_value(),
        (Message::Summary(summary), Format::Slack) => shape::slack::summary(summary),
        (Message::Summary(summary), Format::Falco) => shape::falco::summary(summary),
        (Message::Summary(summary), Format::Otlp) => shape::otlp::summary(summary),
    };
    value.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second case of RFC 4231.
    #[test]
    fn a_body_is_signed_as_the_standard_says() {
        let signed = sign(b"Jefe", b"what do ya want for nothing?");
        let digits = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signed.to_str().unwrap(), format!("sha256={digits}"));
    }
}
