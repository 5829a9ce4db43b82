//! helm, for the tests of the chart: built once, by `tests/helm/go.mod`, into `target/kubernetes`.

use anyhow::Result;

use super::golang::Recipe;
use super::say;

/// The program, and the package that it is built from.
const PROGRAMS: [(&str, &str); 1] = [("helm", "helm.sh/helm/v4/cmd/helm")];

/// Builds it where it is missing, or says why there will be none.
pub(crate) fn run() -> Result<()> {
    let recipe = Recipe::read("tests/helm", "helm-built-from")?;
    if recipe.is_built(&PROGRAMS) {
        return Ok(());
    }
    if let Some(why) = recipe.cannot_build() {
        say(&format!("skipped: {why}, so no test renders the chart: install Go 1.26 or later"));
        return Ok(());
    }
    let version = recipe.version("helm.sh/helm/v4")?;
    say(&format!(
        "building helm {version}, which renders the chart for the tests (once; four minutes on two \
         cores)"
    ));
    let version = format!("-s -w -X helm.sh/helm/v4/internal/version.version=v{version}");
    recipe.build(&PROGRAMS, &version)
}
