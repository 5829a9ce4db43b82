//! Files that change as the kubelet and people change them.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// How long anything may take that is certain to come, and less than [`NET`]: what comes sooner was
/// heard of.
const LONG: Duration = Duration::from_secs(20);

fn text(addresses: &[&str]) -> String {
    let entry = |address| format!("  - {{cidr: {address}, namespace: a, serviceAccount: b}}\n");
    let entries: String = addresses.iter().map(entry).collect();
    format!("floatingIPs:\n  allow:\n{entries}")
}

fn args(path: &Path) -> RunArgs {
    RunArgs { config: Some(path.into()), node_name: Some("n1".into()), ..RunArgs::default() }
}

fn reader(path: &Path) -> Reader {
    let args = args(path);
    let running = super::super::load(&args).unwrap();
    Reader::new(path.into(), args, running, Arc::default())
}

fn shown(allowed: &[Allowed]) -> Vec<String> {
    allowed.iter().map(|entry| entry.allowance.cidr.to_string()).collect()
}

/// A running reload of the file, and what it tells.
struct World {
    rx: mpsc::Receiver<Vec<Allowed>>,
    reloads: Arc<Reloads>,
}

impl World {
    fn new(path: &Path) -> Self {
        let (tx, rx) = mpsc::channel(1);
        let Reader { path, args, running, reloads, .. } = reader(path);
        tokio::spawn(run(path, args, running, Arc::clone(&reloads), tx));
        Self { rx, reloads }
    }

    async fn next(&mut self) -> Vec<String> {
        let told = timeout(LONG, self.rx.recv()).await.expect("the change is noticed");
        shown(&told.expect("the reload goes on"))
    }

    fn counts(&self) -> (u64, u64) {
        (self.reloads.ok(), self.reloads.refused())
    }
}

/// Writes a ConfigMap's new version as the kubelet does: a folder of its own, then the swap.
fn publish(mount: &Path, version: &str, text: &str) {
    fs::create_dir(mount.join(version)).unwrap();
    fs::write(mount.join(version).join("config.yaml"), text).unwrap();
    symlink(version, mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
}

#[tokio::test]
async fn the_kubelets_swap_of_a_mounted_config_map_is_noticed() {
    let mount = TempDir::new().unwrap();
    publish(mount.path(), "..2026_1", &text(&["192.0.2.1/32"]));
    let path = mount.path().join("config.yaml");
    symlink("..data/config.yaml", &path).unwrap();
    let mut world = World::new(&path);
    publish(mount.path(), "..2026_2", &text(&["192.0.2.1/32", "192.0.2.2/32"]));
    assert_eq!(world.next().await, ["192.0.2.1/32", "192.0.2.2/32"]);
    publish(mount.path(), "..2026_3", &text(&["192.0.2.3/32"]));
    assert_eq!(world.next().await, ["192.0.2.3/32"]);
    assert_eq!(world.counts(), (2, 0));
}

#[tokio::test]
async fn a_file_that_is_written_or_replaced_is_noticed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, text(&["192.0.2.1/32"])).unwrap();
    let mut world = World::new(&path);
    fs::write(&path, text(&["192.0.2.2/32"])).unwrap();
    assert_eq!(world.next().await, ["192.0.2.2/32"]);
    let other = folder.path().join("config.yaml.new");
    fs::write(&other, text(&["192.0.2.3/32"])).unwrap();
    fs::rename(&other, &path).unwrap();
    assert_eq!(world.next().await, ["192.0.2.3/32"]);
    // What is refused is not told, and what comes after it is.
    fs::write(&path, text(&["192.0.2.3/24"])).unwrap();
    while world.counts().1 == 0 {
        tokio::task::yield_now().await;
    }
    fs::write(&path, text(&["192.0.2.4/32"])).unwrap();
    assert_eq!(world.next().await, ["192.0.2.4/32"]);
    assert_eq!(world.counts(), (3, 1));
}

#[test]
fn only_the_allow_list_is_taken_over() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, text(&["192.0.2.1/32"])).unwrap();
    let mut reader = reader(&path);
    assert_eq!(reader.look(), None, "nothing has changed since the start");
    assert_eq!((reader.reloads.ok(), reader.reloads.refused()), (0, 0));

    let changed = format!("ringBytes: 65536\nuplinks: [eth9]\n{}", text(&["192.0.2.2/32"]));
    fs::write(&path, changed).unwrap();
    assert_eq!(shown(&reader.look().unwrap()), ["192.0.2.2/32"]);
    let config = super::super::load(&args(&path)).unwrap();
    assert_eq!(reader.running.differences(&config), ["uplinks", "ringBytes"]);
    assert_eq!(reader.look(), None);
    assert_eq!(reader.reloads.ok(), 1);
}

#[test]
fn what_is_refused_is_counted_once_and_leaves_the_old_list() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, text(&["192.0.2.1/32"])).unwrap();
    let mut reader = reader(&path);
    assert_eq!(reader.look(), None);
    fs::write(&path, "floatingIPs: {allow: 7}\n").unwrap();
    assert_eq!((reader.look(), reader.look()), (None, None));
    assert_eq!(reader.reloads.refused(), 1);
    fs::remove_file(&path).unwrap();
    assert_eq!((reader.look(), reader.look()), (None, None));
    assert_eq!(reader.reloads.refused(), 2);
    // The old list again: a reload, but no news.
    fs::write(&path, text(&["192.0.2.1/32"])).unwrap();
    assert_eq!(reader.look(), None);
    assert_eq!((reader.reloads.ok(), reader.reloads.refused()), (1, 2));
    // An empty file is a list without entries.
    fs::write(&path, "").unwrap();
    assert_eq!(reader.look(), Some(vec![]));
}
