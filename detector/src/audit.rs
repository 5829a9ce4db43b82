//! `detector audit`: is this cluster exposed to CVE-2022-28224, has it been hit, who could do it, and
//! what is to be done about it.
//!
//! It looks once and only reads. What it knows is [`Facts`], from a server (`collect`), from files
//! (`dump`) and from the node's own tables (`node`), all through one intake (`gather`) and the agent's
//! own parsers. What it thinks of that is one pure function (`judge`) over `exposure` (versions and
//! switches), `indicators` (what pods say of addresses, against `owners`) and `reach` (who may write it),
//! to a `verdict` and a `plan`. What it says is a [`Report`], shown as a table (`show`), JSON or `sarif`.

mod collect;
mod dump;
mod exposure;
mod facts;
mod gather;
mod guard;
mod indicators;
mod judge;
mod node;
mod owners;
mod plan;
mod progress;
mod reach;
mod report;
mod sarif;
mod shell;
mod show;
mod verdict;

use std::io::Write;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use self::dump::Torn;
use self::facts::{Facts, Kind, Sight};
use self::gather::Gather;
use self::progress::Progress;
use self::report::Report;
use crate::cli::{AuditArgs, AuditOutput, RunArgs, Shown};
use crate::client::show::Look;
use crate::config;
use crate::policy::Allowed;
use crate::source::cluster;
use crate::text::printable;

/// The exit code of an audit that could not look.
const COULD_NOT_LOOK: u8 = 2;

/// Audits what was typed: the report goes to `out`, what is to be known beside it to `err`. Gives the
/// exit code; an error means that nothing could be looked at.
pub async fn run(args: &AuditArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<u8> {
    let allowed = allowed(args)?;
    let progress = Progress::new();
    let (mut facts, torn) = if args.from.is_empty() {
        (server(args, allowed, &progress).await?, Vec::new())
    } else {
        files(args, allowed, &progress)?
    };
    if args.node {
        progress.begin("routes, rules and translations");
        node::look(&mut facts, args.node_name.as_deref()).await?;
    }
    drop(progress);
    let mut report = judge::judge(&facts, Timestamp::now());
    if !torn.is_empty() {
        report.exit_code = COULD_NOT_LOOK;
    }
    let mut out = std::io::BufWriter::new(out);
    write(args, &report, &mut out)?;
    out.flush()?;
    for Torn { place, how } in &torn {
        writeln!(
            err,
            "detector: the dump {place} {how}: what stands behind it is missing; dump it again"
        )?;
    }
    Ok(report.exit_code)
}

/// The allow-list of the configuration file.
fn allowed(args: &AuditArgs) -> Result<Vec<Allowed>> {
    let Some(file) = &args.config else { return Ok(Vec::new()) };
    // Whose configuration it is does not matter here.
    let agent =
        RunArgs { config: Some(file.clone()), node_name: Some("any".into()), ..RunArgs::default() };
    Ok(config::load(&agent)?.allowed)
}

async fn server(args: &AuditArgs, allowed: Vec<Allowed>, progress: &Progress) -> Result<Facts> {
    let connected = cluster::visitor(args.kubeconfig.clone(), args.context.clone()).await;
    let (client, settings) = match connected {
        Ok(connected) => connected,
        // On a node the tables alone say something.
        Err(error) if args.node && args.kubeconfig.is_none() && args.context.is_none() => {
            return Ok(nobody(allowed, &error.to_string()));
        }
        Err(error) => return Err(error).context("the cluster cannot be looked at"),
    };
    let mut gather = Gather::default();
    gather.facts().allowed = allowed;
    gather.facts().source = printable(&settings.cluster_url.to_string(), 300).into();
    Ok(collect::collect(client, &settings.default_namespace, gather, progress).await?)
}

fn files(
    args: &AuditArgs,
    allowed: Vec<Allowed>,
    progress: &Progress,
) -> Result<(Facts, Vec<Torn>)> {
    let mut gather = Gather::default();
    gather.facts().allowed = allowed;
    let names: Vec<String> =
        args.from.iter().map(|path| printable(&path.to_string_lossy(), 300)).collect();
    gather.facts().source = names.join(", ").into();
    gather.facts().offline = true;
    let torn = dump::read(&args.from, &mut gather, progress)?;
    Ok((gather.finish(), torn))
}

/// What is known without a cluster.
fn nobody(allowed: Vec<Allowed>, why: &str) -> Facts {
    let mut gather = Gather::default();
    gather.facts().allowed = allowed;
    gather.facts().source = "this node".into();
    for kind in Kind::ALL {
        gather.saw(kind, Sight::Nothing(printable(why, 400).into()));
    }
    gather.finish()
}

fn write(args: &AuditArgs, report: &Report, out: &mut dyn Write) -> Result<()> {
    if args.fix_plan {
        write!(out, "{}", show::plan(report))?;
        return Ok(());
    }
    match args.output {
        AuditOutput::Table | AuditOutput::Wide => {
            let wide = args.output == AuditOutput::Wide;
            let look = Look::new(if wide { Shown::Wide } else { Shown::Table }, args.color);
            write!(out, "{}", show::report(report, look))?;
        }
        AuditOutput::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
        AuditOutput::Sarif => {
            serde_json::to_writer_pretty(&mut *out, &sarif::log(report))?;
            writeln!(out)?;
        }
    }
    Ok(())
}
