//! What is wrong with the configuration, in one line.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::text::printable;

/// Why there is no configuration. Each is one line: where, which key, what is wrong, what to do.
#[derive(Error, Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}; correct --config or DETECTOR_CONFIG", shown_path(.path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what a configuration file is: YAML of known keys and right types.
    #[error("{origin}: {problem}")]
    Shape {
        /// Where.
        origin: Origin,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A value cannot be taken.
    #[error("{origin}: {}{problem}", if .key.is_empty() { String::new() } else { format!("{key} ") })]
    Value {
        /// Where it was typed.
        origin: Origin,
        /// The key, empty where the origin says it all.
        key: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Nobody said which node this is.
    #[error(
        "the node's name is missing: set NODE_NAME (in a DaemonSet from fieldRef spec.nodeName), \
         --node-name or nodeName"
    )]
    NoNodeName,
    /// The configuration could not be written out.
    #[error("the configuration cannot be shown: {0}")]
    Show(String),
}

/// Where a value was typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// In the file; line and column count from 1, and 0 means not known.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The column.
        column: u64,
    },
    /// As a flag or in the environment variable behind it.
    Flag {
        /// The flag.
        flag: &'static str,
        /// The variable.
        variable: &'static str,
    },
}

// === impl ConfigError ===

impl ConfigError {
    /// The exit code of a command that ends with this error, as for any wrong command line.
    pub const EXIT_CODE: u8 = 2;

    pub(super) fn value(origin: Origin, key: &'static str, problem: String) -> Self {
        Self::Value { origin, key, problem }
    }
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0, .. } => f.write_str(&shown_path(path)),
            Self::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", shown_path(path))
            }
            Self::Flag { flag, variable } => write!(f, "{flag} ({variable})"),
        }
    }
}

/// A path, fit for one line.
pub(super) fn shown_path(path: &Path) -> String {
    printable(&path.to_string_lossy(), 256)
}
