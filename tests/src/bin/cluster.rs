//! Measures and wears the agent at a real kube-apiserver: see `detector_tests::scale` and
//! `detector_tests::endure`; and measures the audit: `detector_tests::audit`.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use detector_tests::cluster::programs::Programs;
use detector_tests::{audit, endure, scale};

/// Measures and wears the agent at a real kube-apiserver. Needs root.
#[derive(Parser)]
#[command(name = "cluster", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure traffic, memory and the time to name a far victim in a small and a large cluster;
    /// fail where a bound is broken.
    Scale(Scale),
    /// Measure what an agent takes of a node at peace: time until it is ready, memory, processor time;
    /// fail where a bound is broken.
    Footprint {
        /// Seconds for which it is left alone.
        #[arg(long, default_value_t = 60)]
        quiet: u64,
    },
    /// Kill the agent and the API server at random points while pods come and go and attacks begin
    /// and end; fail where anything false was found, missed, or opened twice.
    Endure(Endure),
    /// Measure time, memory and requests of an audit of a large cluster; fail where a bound is broken.
    Audit(Audit),
}

#[derive(Args)]
struct Audit {
    /// Pods.
    #[arg(long, default_value_t = 50_000)]
    pods: u32,
    /// Roles, and as many bindings.
    #[arg(long, default_value_t = 5_000)]
    roles: u32,
}

#[derive(Args)]
struct Endure {
    /// How often something is killed.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// What chance follows from; by chance where it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct Scale {
    /// Nodes.
    #[arg(long, default_value_t = 200)]
    nodes: u32,
    /// Pods of the agent's node.
    #[arg(long, default_value_t = 100)]
    own: u32,
    /// Pods of the small cluster.
    #[arg(long, default_value_t = 2_000)]
    few: u32,
    /// Pods of the large cluster.
    #[arg(long, default_value_t = 20_000)]
    many: u32,
    /// Seconds for which an agent is left alone.
    #[arg(long, default_value_t = 60)]
    quiet: u64,
    /// Far pods that are changed, deleted and made anew meanwhile.
    #[arg(long, default_value_t = 2_000)]
    churn: u32,
    /// Hijacks of far pods' addresses.
    #[arg(long, default_value_t = 20)]
    hijacks: u32,
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Scale(Scale { nodes, own, few, many, quiet, churn, hijacks }) => {
            let quiet = Duration::from_secs(quiet);
            scale::run(&scale::Plan { nodes, own, few, many, quiet, churn, hijacks })
        }
        What::Footprint { quiet } => scale::footprint::run(Duration::from_secs(quiet)),
        What::Audit(Audit { pods, roles }) => audit::run(audit::Plan { pods, roles }),
        What::Endure(Endure { rounds, seed }) => {
            // A seed that people can type.
            let seed = seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
            endure::run(Programs::find()?, endure::Plan { seed, rounds })
        }
    }
}
