//! The command line: what can be typed.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admission::{Action, Form, Part};
use crate::config::{
    self, ConfigError, Hook, Output, PacketSource, ReferenceForm, RouteSource, WriterSource,
};
use crate::selftest::SelftestArgs;

const EXAMPLES: &str = "\
Examples:
  NODE_NAME=worker-1 detector run                     in a pod of a DaemonSet
  detector run --node-name worker-1 --kubeconfig ~/.kube/config -o text
  detector run --node-name worker-1 --no-api          routes only, no cluster
  detector config check /etc/detector/config.yaml     before it is rolled out
  detector config show --config config.yaml           what all of it amounts to
  detector probe                                      what this node offers, before it is installed
  detector status                                     what the agent of this node sees, and does not
  detector findings -o wide                           what stands now
  detector explain 10.244.7.9                         whose it is, by whom, where its packets go
  detector acknowledge '10.244.7.9/32 dev cali1' --for 4h --by alice
  detector runbook dnat                               what to do about a finding of this kind
  detector test-alert --config config.yaml            whether alerts arrive where they should
  detector selftest                                   whether a hijack here would arrive there
  detector run --record r.jsonl; detector replay r.jsonl
  detector audit                                      whether a cluster is exposed, and has been hit
  detector policy --config config.yaml                an admission policy that refuses the attack

Exit codes: 0 all went well; 1 it failed, `findings --fail` or `audit` found some, or routes cannot
be seen here; 2 what was typed is wrong, no agent answers, or `audit` could not look.";

const AUDIT_EXAMPLES: &str = "\
Examples:
  detector audit                                      the cluster that kubectl would talk to
  detector audit --context prod -o sarif > audit.sarif
  detector audit --fix-plan | less                    what to do about it; nothing is done
  detector audit --from pods.yaml --from roles.json   files of kubectl get ... -o yaml or -o json
  detector audit --from must-gather.local/            a folder of them
  detector audit --node --node-name worker-1          on the node: its routes, rules and translations too

It reads, by get and list only, what deploy/audit-rbac.yaml allows, and says what it could not see.

Exit codes: 0 nothing was found; 1 there are findings; 2 it could not look, or not at enough to say that
there is nothing.";

const SELFTEST_EXAMPLES: &str = "\
Examples:
  detector selftest --config /etc/detector/config.yaml   as root on a node
  detector selftest --here                               in a pod that has a network namespace of
                                                         its own, BPF, PERFMON and NET_ADMIN
  detector selftest --without-sink pager --strict        what is degraded is a failure, too
  detector selftest -o json | tail -n 1                  the report, after the findings

Sinks are told that it is a test: findings have test, Alertmanager and Events RouteHijackTest.

Exit codes: 0 the alert has arrived everywhere; 1 a stage has failed, and it says why; 2 what was
typed is wrong, or --here was refused.";

const POLICY_EXAMPLES: &str = "\
Examples:
  detector policy --cluster --action audit            what would be refused, in the server's audit log
  detector policy --cluster | kubectl apply -f -      refuse it, but for the cluster's allowances
  detector policy --config config.yaml --format kyverno
  detector policy --only claims                       the annotations of CVE-2022-28224 alone

It prints policies and applies nothing. They do not follow the allow-list: print them again when it
changes, or when an entry expires.";

/// Detects hijacked pod routes on a Calico node (CVE-2022-28224 and its relatives).
#[derive(Parser, Debug)]
#[command(name = "detector", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Watch this node until told to stop, and write findings to standard output.
    Run(RunArgs),
    /// Look at a cluster once, without an agent: is it exposed to CVE-2022-28224, has it been hit, who
    /// could, and what to do about it. Only reads.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditArgs),
    /// Print admission policies that refuse what the attack needs, but for what the allow-list allows.
    #[command(after_help = POLICY_EXAMPLES)]
    Policy(PolicyArgs),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show how the running agent is: what it watches, what is degraded and why.
    Status(AskArgs),
    /// Show the findings that stand.
    Findings {
        /// How to ask.
        #[command(flatten)]
        ask: AskArgs,
        /// End with exit code 1 where any stands.
        #[arg(long)]
        fail: bool,
    },
    /// Explain an address: who says whose it is, which routes and rules there are for it, where packets
    /// for it go from here, and what the agent thinks of that.
    Explain {
        /// The address.
        address: std::net::IpAddr,
        /// How to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Say that somebody takes care of a finding: people are not told of it again, unless it gets worse
    /// or is over.
    #[command(visible_alias = "ack")]
    Acknowledge {
        /// The key of the finding, as `detector findings` shows it.
        key: String,
        /// For how long, such as 4h.
        #[arg(long = "for", value_name = "DURATION", default_value = "4h")]
        lasts: String,
        /// Who takes care of it.
        #[arg(long, value_name = "NAME", required_unless_present = "undo")]
        by: Option<String>,
        /// Why, for whoever reads it next.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Take it back.
        #[arg(long, conflicts_with_all = ["by", "reason"])]
        undo: bool,
        /// How to ask.
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Show what this node offers the agent, what it would use of it, and what is degraded and why. It
    /// tries all of it out, in the network namespace that it runs in, and changes nothing.
    Probe {
        /// What it looks like.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Shown,
        /// When there is colour. NO_COLOR is respected.
        #[arg(long, value_name = "WHEN", default_value = "auto")]
        color: Colour,
    },
    /// Write the agent's seccomp profile, as kubelet and container runtimes read it, to standard output or
    /// into a file, whose folder must be there.
    Seccomp {
        /// The file; it is replaced in one step.
        file: Option<PathBuf>,
    },
    /// Send a test finding through every configured sink, and say of each whether it took it.
    TestAlert(RunArgs),
    /// Hijack an address that nobody uses, in a network namespace of its own, and see whether the alert
    /// arrives: route source, API server, engine and every sink are those of the agent. Nothing is left
    /// behind, and the host's routes are not touched.
    #[command(after_help = SELFTEST_EXAMPLES)]
    Selftest(SelftestArgs),
    /// Show a page of the runbook; without a name, the overview.
    Runbook {
        /// The page: the means of the finding, `flood` or `degraded`.
        page: Option<String>,
    },
    /// Give the findings of a recording again, byte for byte, without a kernel or a cluster.
    Replay {
        /// A file that was written by `detector run --record`.
        file: PathBuf,
        /// What findings look like.
        #[arg(short, long, value_name = "FORMAT", default_value = "json")]
        output: Output,
    },
    /// Write completions for a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages: that of the program to standard output, or all of them into a folder.
    Man {
        /// The folder.
        folder: Option<PathBuf>,
    },
}

/// What to audit, and how to show it.
#[derive(Args, Clone, Debug, Default)]
pub struct AuditArgs {
    /// The kubeconfig file; without it the one that kubectl would take, or the service account of the pod.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub context: Option<String>,
    /// Read this dump in place of a server: a file of `kubectl get ... -o yaml` or `-o json`, or a folder
    /// of such files. Can be given several times.
    #[arg(long, value_name = "PATH")]
    pub from: Vec<PathBuf>,
    /// Also read routes, rules and translations of the node on which this runs. Needs root.
    #[arg(long)]
    pub node: bool,
    /// The name of that node; without it, the host's.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// A configuration file of the agent, for its allow-list of floating IPs.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What it looks like.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: AuditOutput,
    /// Print what to do, as commands to read and to type, in place of the report. Nothing is done.
    #[arg(long, conflicts_with = "output")]
    pub fix_plan: bool,
    /// When there is colour. NO_COLOR is respected.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
}

/// Which policies to print, for whom, and in which form.
#[derive(Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// A configuration file of the agent, for its allow-list of floating IPs.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Also take the FloatingIPAllowances of the cluster.
    #[arg(long)]
    pub cluster: bool,
    /// The kubeconfig file; without it the one that kubectl would take, or the service account of the pod.
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", requires = "cluster")]
    pub context: Option<String>,
    /// Whose objects they are.
    #[arg(long, value_name = "FORMAT", default_value = "vap")]
    pub format: Form,
    /// What becomes of a write that they refuse.
    #[arg(long, value_name = "ACTION", default_value = "deny")]
    pub action: Action,
    /// Print these only.
    #[arg(
        long,
        value_name = "POLICY",
        value_delimiter = ',',
        default_value = "claims,records,statuses"
    )]
    pub only: Vec<Part>,
    /// Another account that may write the CNI plugin's annotations, such as
    /// system:serviceaccount:network:cni. Can be given several times.
    #[arg(long, value_name = "USER")]
    pub cni_user: Vec<String>,
    /// Another account that may write pods' addresses, such as that of a virtual kubelet. Can be given
    /// several times.
    #[arg(long, value_name = "USER")]
    pub node_user: Vec<String>,
}

/// What an audit looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum AuditOutput {
    /// A table.
    #[default]
    Table,
    /// A table with more columns and all rows.
    Wide,
    /// JSON, by docs/schema/audit.v1.json.
    Json,
    /// SARIF 2.1.0.
    Sarif,
}

/// How to ask the running agent, and how to show what it says.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// The agent's socket.
    #[arg(
        long,
        value_name = "PATH",
        env = "DETECTOR_SOCKET",
        default_value = "/run/detector/detector.sock"
    )]
    pub socket: PathBuf,
    /// What it looks like.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Shown,
    /// When there is colour. NO_COLOR is respected.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: Colour,
}

/// What an answer looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Shown {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
}

/// When there is colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do with the configuration.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Check a configuration file: one line, and exit code 2 where something is wrong.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Write the effective configuration as YAML: flags, environment, file and defaults together.
    Show(RunArgs),
    /// Write the reference of all keys, flags and variables.
    Reference {
        /// What it looks like.
        #[arg(short, long, value_name = "FORMAT", default_value = "markdown")]
        output: ReferenceForm,
    },
}

/// What can be said of a run on the command line. A flag wins over its variable, both over the file.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "DETECTOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// The node that this is.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The kubeconfig file; without it the service account of the pod is used.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Do not ask the API server: hijacks are told by routes alone.
    #[arg(long)]
    pub no_api: bool,
    /// Where routes are seen from.
    #[arg(long, value_name = "SOURCE")]
    pub route_source: Option<RouteSource>,
    /// How packets on pods' interfaces and uplinks are watched.
    #[arg(long, value_name = "HOW")]
    pub packets: Option<PacketSource>,
    /// How it is known who writes a route.
    #[arg(long, value_name = "HOW")]
    pub writers: Option<WriterSource>,
    /// Act as if the kernel refused this hook: for drills, to see what is degraded then and who is told.
    #[arg(long, value_name = "HOOK", value_delimiter = ',', hide_short_help = true)]
    pub refuse: Vec<Hook>,
    /// What findings look like.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,
    /// Where metrics and probes are served: address:port, or none.
    #[arg(long, value_name = "ADDRESS", env = "DETECTOR_LISTEN")]
    pub listen: Option<String>,
    /// The unix socket for `detector status` and its like, or none.
    #[arg(long, value_name = "PATH", env = "DETECTOR_SOCKET")]
    pub socket: Option<PathBuf>,
    /// The file that keeps standing findings over a restart, or none.
    #[arg(long, value_name = "FILE", env = "DETECTOR_STATE")]
    pub state: Option<PathBuf>,
    /// Write every observation to this file, for `detector replay`. It grows without end.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// How much is logged to standard error: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "DETECTOR_LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    /// What the log looks like.
    #[arg(long, value_name = "FORMAT", env = "DETECTOR_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
#[expect(missing_docs, reason = "tracing's own five words")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// What the log looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

// === impl LogLevel ===

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

// === impl ConfigCommand ===

impl ConfigCommand {
    /// Does it. The answer goes to `out`, what is wrong to `err` as one line; the exit code is 0 or
    /// [`ConfigError::EXIT_CODE`].
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
        let answer = match self {
            Self::Check { file } => config::check(file),
            Self::Show(args) => config::show(args),
            Self::Reference { output } => config::reference(*output),
        };
        match answer {
            Ok(answer) => writeln!(out, "{}", answer.trim_end()).map(|()| 0),
            Err(error) => writeln!(err, "{error}").map(|()| ConfigError::EXIT_CODE),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_run_can_be_typed() {
        let cli = Cli::try_parse_from([
            "detector",
            "run",
            "--node-name=a",
            "--route-source=netlink",
            "-otext",
            "--no-api",
            "--log-level=debug",
            "--log-format=json",
        ]);
        let Command::Run(args) = cli.unwrap().command else { panic!("a run was typed") };
        assert_eq!(args.node_name.as_deref(), Some("a"));
        assert_eq!(args.route_source, Some(RouteSource::Netlink));
        assert_eq!(args.output, Some(Output::Text));
        assert_eq!((args.no_api, args.log_level), (true, LogLevel::Debug));
        assert_eq!(args.log_format, LogFormat::Json);
    }

    #[test]
    fn an_audit_can_be_typed() {
        let audit = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["detector", "audit"], arguments].concat());
            cli.map(|cli| match cli.command {
                Command::Audit(args) => args,
                other => panic!("an audit was typed, not {other:?}"),
            })
        };
        let args = audit(&["--from", "a.yaml", "--from", "b", "-osarif", "--node"]).unwrap();
        assert_eq!(args.from, [PathBuf::from("a.yaml"), PathBuf::from("b")]);
        assert_eq!((args.output, args.node), (AuditOutput::Sarif, true));
        // A pod of a DaemonSet has the variable, whatever is asked for.
        assert_eq!(audit(&["--node-name", "a"]).unwrap().output, AuditOutput::Table);
        assert!(audit(&["--from", "a", "--kubeconfig", "b"]).is_err());
        assert!(audit(&["--fix-plan", "--output", "json"]).is_err());
    }

    #[test]
    fn help_has_the_examples_and_version_the_version() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("detector config check /etc/detector/config.yaml"), "{help}");
        let version = Cli::try_parse_from(["detector", "--version"]).unwrap_err();
        assert_eq!(version.to_string(), format!("detector {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_missing_file_is_one_line_and_exit_code_2() {
        let command = ConfigCommand::Check { file: "/nonexistent/a\nb.yaml".into() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(command.run(&mut out, &mut err).unwrap(), 2);
        assert!(out.is_empty());
        let err = String::from_utf8(err).unwrap();
        assert_eq!(
            err,
            "/nonexistent/a\\nb.yaml: cannot be read: No such file or directory (os error 2); \
             correct --config or DETECTOR_CONFIG\n"
        );
    }
}
