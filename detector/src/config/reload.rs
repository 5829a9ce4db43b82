//! The configuration file while the agent runs: of a change the allow-list is taken over at once.
//!
//! A mounted ConfigMap changes when the kubelet swaps the symbolic link `..data` in the folder of
//! the file, and an editor puts a new file in the place of the old one: so the folder is watched,
//! not the file. A file that is mounted by `subPath` never changes; the kubelet leaves it as it is.
//! Where the folder cannot be watched, or lies behind another link, a look every minute is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Config, ConfigError, File};
use crate::cli::RunArgs;
use crate::policy::Allowed;

/// How often the file is read although nothing was heard of it.
const NET: Duration = Duration::from_mins(1);
/// A file is read when nothing was heard of it for so long: whoever writes it empties it first.
const QUIET: Duration = Duration::from_millis(200);
/// But it is read after so long at the latest.
const LATEST: Duration = Duration::from_secs(2);

/// How often the file was read anew, and with what outcome.
#[derive(Debug, Default)]
pub struct Reloads {
    ok: AtomicU64,
    refused: AtomicU64,
}

/// The file, and what was taken of it last.
struct Reader {
    path: PathBuf,
    args: RunArgs,
    /// What the agent was started with.
    running: Config,
    allowed: Vec<Allowed>,
    /// The text that was read last; `None` before the first look.
    text: Option<String>,
    /// Why the file could not be read, when that was so the last time.
    unreadable: Option<String>,
    reloads: Arc<Reloads>,
}

/// What wakes a reader. It listens as long as this lives.
struct Ear {
    changes: mpsc::Receiver<()>,
    /// Keeps the channel open where there is no watcher.
    _tell: mpsc::Sender<()>,
    _watcher: Option<RecommendedWatcher>,
}

// === impl Reloads ===

impl Reloads {
    /// Changes of the file that were taken over.
    pub fn ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    /// Changes of the file that were refused: what was in force stayed in force.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Tells each new allow-list of the file at `path` until nobody listens. `running` is what the file
/// gave with `args` at the agent's start.
pub(crate) async fn run(
    path: PathBuf,
    args: RunArgs,
    running: Config,
    reloads: Arc<Reloads>,
    tx: mpsc::Sender<Vec<Allowed>>,
) {
    let mut ear = Ear::at(&path);
    let mut reader = Reader::new(path, args, running, reloads);
    let mut net = interval(NET);
    net.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // At once for the first time: the file may have changed since the agent's start.
            _ = net.tick() => {}
            () = ear.hear() => {}
            () = tx.closed() => return,
        }
        ear.settle().await;
        if let Some(allowed) = reader.look()
            && tx.send(allowed).await.is_err()
        {
            return;
        }
    }
}

// === impl Ear ===

impl Ear {
    fn at(path: &Path) -> Self {
        let (tell, changes) = mpsc::channel(1);
        let watcher = watcher(path, tell.clone())
            .inspect_err(|error| {
                warn!(
                    %error,
                    "degraded: the folder of the configuration file cannot be watched; its changes \
                     are noticed within a minute; raise fs.inotify.max_user_instances and \
                     max_user_watches"
                );
            })
            .ok();
        Self { changes, _tell: tell, _watcher: watcher }
    }

    /// Waits for a change.
    async fn hear(&mut self) {
        // Never the end: this holds a sender itself.
        self.changes.recv().await;
    }

    /// Waits until whoever writes is done.
    async fn settle(&mut self) {
        let quiet = async { while timeout(QUIET, self.changes.recv()).await.is_ok() {} };
        // After the latest moment it is read as it is.
        let _ = timeout(LATEST, quiet).await;
    }
}

/// Tells of whatever happens in the folder of the file and may be a change of it.
fn watcher(path: &Path, tell: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let own = path.file_name().map(ToOwned::to_owned);
    let handler = move |event: notify::Result<Event>| {
        let concerns = |path: &PathBuf| {
            let name = path.file_name();
            name == own.as_deref() || name.is_some_and(|n| n.as_encoded_bytes().starts_with(b".."))
        };
        let of_interest = match &event {
            // Reading is no change, and the reader would wake itself.
            Ok(event) => match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                    event.paths.iter().any(concerns)
                }
                EventKind::Access(_) => false,
                _ => event.need_rescan() || event.paths.iter().any(concerns),
            },
            Err(_) => true,
        };
        if of_interest {
            // Where one word waits already, another says nothing more.
            let _ = tell.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    watcher.watch(folder.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

// === impl Reader ===

impl Reader {
    fn new(path: PathBuf, args: RunArgs, running: Config, reloads: Arc<Reloads>) -> Self {
        let allowed = running.allowed.clone();
        Self { path, args, running, allowed, text: None, unreadable: None, reloads }
    }

    /// The allow-list of the file, where it has changed and can be taken.
    fn look(&mut self) -> Option<Vec<Allowed>> {
        let text = match File::text(&self.path) {
            Ok(text) => text,
            Err(error) => {
                let line = error.to_string();
                if self.unreadable.as_ref() != Some(&line) {
                    self.refuse(&error);
                    self.unreadable = Some(line);
                }
                return None;
            }
        };
        self.unreadable = None;
        if self.text.as_ref() == Some(&text) {
            return None;
        }
        let first = self.text.is_none();
        let parsed =
            File::parse(&self.path, &text).and_then(|file| Config::resolve(&self.args, &file));
        self.text = Some(text);
        match parsed {
            Ok(config) => self.take(config, first),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    fn take(&mut self, config: Config, first: bool) -> Option<Vec<Allowed>> {
        let pending = self.running.differences(&config);
        let same = config.allowed == self.allowed;
        if first && same && pending.is_empty() {
            return None;
        }
        self.reloads.ok.fetch_add(1, Ordering::Relaxed);
        let entries = config.allowed.len();
        let list = if same { "is as before" } else { "is taken over" };
        if pending.is_empty() {
            info!(entries, "the configuration file has changed: floatingIPs.allow {list}");
        } else {
            let keys = pending.join(", ");
            warn!(
                entries,
                "the configuration file has changed: floatingIPs.allow {list}; \
                 for {keys} restart the agent"
            );
        }
        (!same).then(|| {
            self.allowed.clone_from(&config.allowed);
            config.allowed
        })
    }

    fn refuse(&self, error: &ConfigError) {
        self.reloads.refused.fetch_add(1, Ordering::Relaxed);
        warn!("the configuration file is refused, what was in force stays in force: {error}");
    }
}

#[cfg(test)]
mod tests;
