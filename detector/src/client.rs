//! The commands that ask the running agent over its socket, and how they show what it says.

pub(crate) mod show;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use self::show::Look;
use crate::cli::{AskArgs, Colour, Command, Shown};
use crate::config::value;
use crate::doors::Acknowledge;
use crate::probe::Probe;
use crate::text::printable;

/// How long the agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an acknowledgement may last.
const LASTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(24 * 31));

/// Asks the agent what was typed, and shows the answer.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for the question")?;
    runtime.block_on(ask(command, out))
}

async fn ask(command: &Command, out: &mut dyn Write) -> Result<ExitCode> {
    match command {
        Command::Status(args) => {
            show(args, get(args, "/v1/status").await?, out, show::status)?;
        }
        Command::Explain { address, ask } => {
            let path = format!("/v1/explain?address={address}");
            show(ask, get(ask, &path).await?, out, show::explained)?;
        }
        Command::Findings { ask, fail } => {
            let findings = get(ask, "/v1/findings").await?;
            let some = findings.as_array().is_some_and(|findings| !findings.is_empty());
            show(ask, findings, out, show::findings)?;
            if *fail && some {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Acknowledge { key, lasts, by, reason, undo, ask } => {
            let lasts = value::duration(lasts, LASTS.0, LASTS.1)
                .map_err(|problem| anyhow::anyhow!("--for {problem}"))?;
            let by = by.as_deref().filter(|_| !undo).map(Into::into);
            let asked = Acknowledge {
                key: key.clone(),
                by,
                seconds: lasts.as_secs(),
                reason: reason.as_deref().map(Into::into),
            };
            let answer = send(ask, "/v1/acknowledge", &serde_json::to_vec(&asked)?).await?;
            if ask.output == Shown::Json {
                writeln!(out, "{answer}")?;
            } else if *undo {
                writeln!(out, "nobody takes care of it any more")?;
            } else {
                let until = answer["until"].as_str().unwrap_or("?");
                writeln!(out, "people are not told of it again until {until}")?;
            }
        }
        _ => bail!("that is no question to the agent"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what a node offers.
pub fn show_probe(probe: &Probe, output: Shown, colour: Colour, out: &mut dyn Write) -> Result<()> {
    if output == Shown::Json {
        serde_json::to_writer_pretty(&mut *out, probe)?;
        writeln!(out)?;
        return Ok(());
    }
    write!(out, "{}", show::probe(probe, Look::new(output, colour)))?;
    Ok(())
}

fn show<T: DeserializeOwned>(
    args: &AskArgs,
    answer: Value,
    out: &mut dyn Write,
    table: impl FnOnce(&T, Look) -> String,
) -> Result<()> {
    if args.output == Shown::Json {
        serde_json::to_writer_pretty(&mut *out, &answer)?;
        writeln!(out)?;
        return Ok(());
    }
    let answer: T = serde_json::from_value(answer)
        .context("the agent is of another version than this command: use the same")?;
    write!(out, "{}", table(&answer, Look::of(args)))?;
    Ok(())
}

async fn get(args: &AskArgs, path: &str) -> Result<Value> {
    let request = Request::builder().method(Method::GET).uri(path).header("host", "detector");
    exchange(&args.socket, request.body(Full::new(Bytes::new()))?).await
}

async fn send(args: &AskArgs, path: &str, body: &[u8]) -> Result<Value> {
    let request = Request::builder().method(Method::POST).uri(path).header("host", "detector");
    exchange(&args.socket, request.body(Full::new(Bytes::copy_from_slice(body)))?).await
}

async fn exchange(socket: &Path, request: Request<Full<Bytes>>) -> Result<Value> {
    let talk = async {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            format!(
                "no agent answers at {}: is it running on this node, are you root, and is its \
                 socket another (--socket)?",
                socket.display()
            )
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let talking = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        talking.abort();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if !status.is_success() {
            let why = answer["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            bail!("{}", printable(&why, 500));
        }
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .unwrap_or_else(|_| bail!("the agent does not answer: `detector status` shows how it is"))
}
