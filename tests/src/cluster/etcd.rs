//! etcd, on a socket file: no port to be taken by others, and none to be seen by them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::programs::Programs;
use crate::process::{Keeper, Process};

/// A running etcd.
#[derive(Debug)]
pub(super) struct Etcd {
    socket: PathBuf,
    _process: Process,
}

// === impl Etcd ===

impl Etcd {
    /// Starts etcd with its data in a folder. kube-apiserver waits for it by itself.
    pub(super) fn start(keeper: &Keeper, programs: &Programs, folder: &Path) -> Result<Self> {
        let socket = folder.join("etcd.sock");
        let url = url(&socket);
        let peers = format!("unix://{}", folder.join("peers.sock").display());
        let log = File::create(folder.join("etcd.log")).context("cannot make a log file")?;
        let mut command = Command::new(&programs.etcd);
        command
            .args(["--name=test", "--log-level=warn", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=test={peers}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self { _process: keeper.start(command)?, socket })
    }

    /// Where clients find it.
    pub(super) fn url(&self) -> String {
        url(&self.socket)
    }

    /// Forgets all versions but the newest.
    pub(super) fn compact(&self) -> Result<()> {
        let status = self.ask("/v3/maintenance/status", &json!({}))?;
        let revision = status["header"]["revision"].clone();
        self.ask("/v3/kv/compaction", &json!({ "revision": revision, "physical": true }))?;
        Ok(())
    }

    /// Asks by etcd's own JSON gateway.
    fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let ask = || -> Result<String> {
            let mut stream = UnixStream::connect(&self.socket)?;
            let body = body.to_string();
            let length = body.len();
            // HTTP/1.0: the answer ends with the connection, and comes in one piece.
            write!(
                stream,
                "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().with_context(|| format!("cannot ask etcd for {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        ensure!(head.contains(" 200 "), "etcd refuses {path}: {answer}");
        serde_json::from_str(body).with_context(|| format!("etcd's answer to {path}: {answer}"))
    }
}

fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}
