//! How far an audit is, for whoever waits at a terminal.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error where that is a terminal, and nothing where it is not.
pub(super) struct Progress(ProgressBar);

// === impl Progress ===

impl Progress {
    pub(super) fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {human_pos}{prefix}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Something else is looked at from now on.
    pub(super) fn begin(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.set_prefix("");
        self.0.set_position(0);
    }

    /// So many have been read, and so many are left, where the server says so.
    pub(super) fn at(&self, read: u64, left: Option<u64>) {
        if let Some(left) = left {
            self.0.set_prefix(format!(" of {}", indicatif::HumanCount(read + left)));
        }
        self.0.set_position(read);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
