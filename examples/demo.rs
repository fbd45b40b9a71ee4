//! `make demo`: the main job as a story on one screen, and a test that exits 0 only if every step held.
//!
//! A volume with a real filesystem is backed up into a real S3 server; its data changes; the wire is cut in the middle of
//! the next backup, which stops where the bucket is and says why; the wire is mended and the same Backup finishes, without
//! sending anything twice; both days are restored and compared. All of it runs on loopback, in processes that end with
//! this one. Ten times a second the status is compared with what really lies in the bucket (`watch`).

#[path = "demo/screen.rs"]
mod screen;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "demo/watch.rs"]
mod watch;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::Parser;
use kube::Api;
use screen::{Screen, size};
use support::{ACCESS_KEYS, Home, Image, Lent, Operator, S3Server, Wire, operator::NAMESPACE};
use tidemark::api::{Backup, BackupState, ClusterBackupTarget};
use watch::{Blocks, Tally, View, Watch, run, wait};

const BUCKET: &str = "backups";
const MIB: u64 = 1 << 20;
/// Uploads are slowed to take about this long, so that a person sees them.
const UPLOAD_SECONDS: u64 = 8;

/// Tidemark's main job as a story: backup, change, cut wire, healing, restore.
#[derive(Parser)]
#[command(name = "demo")]
struct Options {
    /// Size of the volume: 256Mi, 2Gi
    #[arg(long, default_value = "256Mi", value_parser = parse_size)]
    size: u64,
    /// Leave everything up at the end, to play with, until Enter or Ctrl-C
    #[arg(long)]
    keep: bool,
    /// No colours
    #[arg(long, env = "NO_COLOR", num_args = 0..=1, default_missing_value = "1", default_value = "")]
    no_color: String,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit.trim_end_matches('B').trim_end_matches('i') {
        "M" => MIB,
        "G" => 1024 * MIB,
        _ => return Err("write a size such as 256Mi or 2Gi".to_owned()),
    };
    let bytes = number.parse::<u64>().map_err(|e| e.to_string())?.saturating_mul(unit);
    // Whole blocks of 2 MiB, and enough of them that a cut has a middle.
    match (64 * MIB..=64 * 1024 * MIB).contains(&bytes) {
        true => Ok(bytes / (2 * MIB) * (2 * MIB)),
        false => Err("between 64Mi and 64Gi, please".to_owned()),
    }
}

/// The parts, in the order in which they must go: the operator before what it speaks to.
struct Stage {
    operator: Operator,
    plane: Lent,
    wire: Wire,
    store: S3Server,
    home: std::sync::Arc<Home>,
    backups: Api<Backup>,
    targets: Api<ClusterBackupTarget>,
    volume: PathBuf,
    tally: Tally,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mut screen = Screen::new(!options.no_color.is_empty());
    let told = tokio::select! {
        told = tell(&options, &mut screen) => told,
        _ = tokio::signal::ctrl_c() => Err("Stopped by you".to_owned()),
    };
    screen.keep_bar();
    match told {
        Ok(stage) if options.keep => {
            stay(&stage, &mut screen).await;
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(seen) => {
            screen.failed(&seen);
            ExitCode::FAILURE
        }
    }
}

async fn tell(options: &Options, screen: &mut Screen) -> Result<Stage, String> {
    let mut stage = raise(options, screen).await?;
    if let Err(seen) = acts(&mut stage, screen).await {
        screen.keep_bar();
        screen.quote(&stage.operator.tail());
        return Err(seen);
    }
    Ok(stage)
}

async fn acts(stage: &mut Stage, screen: &mut Screen) -> Result<(), String> {
    target(stage, screen).await?;
    let monday = first_backup(stage, screen).await?;
    let yesterday = change_data(stage, screen)?;
    let tuesday = cut_and_heal(stage, screen).await?;
    restore(stage, screen, ("monday", &monday), &yesterday).await?;
    let today = stage.volume.clone();
    restore(stage, screen, ("tuesday", &tuesday), &today).await?;
    summary(stage, screen)
}

/// Everything that is not Tidemark.
async fn raise(options: &Options, screen: &mut Screen) -> Result<Stage, String> {
    screen.title("Tidemark, on this machine only");
    let store = S3Server::with_room(options.size);
    store.create_bucket(BUCKET);
    let wire = Wire::new(store.address());
    let home = Home::with_room(4 * options.size);
    let plane = Lent::for_good().await;
    let client = plane.client().await;
    let version = client.apiserver_version().await.map_err(|e| e.to_string())?;
    let (cut, server) = (wire.address(), store.address());
    screen.say(&format!("a control plane    etcd and kube-apiserver {} on loopback", version.git_version));
    screen.say(&format!("an S3 server       {server}, signatures checked, behind a wire that can be cut: {cut}"));
    let volume = make_volume(&home.volumes(), options.size, screen);
    plane.kubectl(&["create", "namespace", NAMESPACE]).await;
    screen.command("tidemark crds | kubectl apply -f -");
    let crds = run(&["crds"], &[]).await?;
    plane.apply(&crds).await;
    plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await;
    screen.command(&format!(
        "tidemark operator --workers=process --namespace {NAMESPACE} --host-device-root {} &",
        home.volumes().display()
    ));
    let operator = Operator::start_in(&plane, home.clone(), &[]);
    let backups = Api::namespaced(client.clone(), NAMESPACE);
    let targets = Api::all(client);
    Ok(Stage { operator, plane, wire, store, home, backups, targets, volume, tally: Tally::default() })
}

/// An ext4 filesystem with files in it; random blocks if this machine cannot make one.
fn make_volume(directory: &Path, bytes: u64, screen: &mut Screen) -> PathBuf {
    let (path, content) = (directory.join("disk.img"), directory.join("content"));
    std::fs::create_dir(&content).expect("the scratch directory is ours");
    let file = |name: &str, length: u64, fill: fn(&mut [u8], u64), seed: u64| {
        let mut bytes = vec![0; usize::try_from(length).expect("a demo's file fits in memory")];
        fill(&mut bytes, seed);
        std::fs::write(content.join(name), bytes).expect("there is room");
    };
    file("photos.tar", bytes / 4, support::image::fill_random, 1);
    file("orders.csv", bytes / 8, support::image::fill_text, 2);
    let made = Image::ext4(&path, bytes, &content);
    std::fs::remove_dir_all(&content).expect("the scratch directory is ours");
    let what = match made {
        Some(_) => "ext4 with photos.tar and orders.csv".to_owned(),
        None => {
            let blocks = usize::try_from(bytes / (2 * MIB)).expect("a demo's volume has few blocks");
            let fill = |i| if i % 3 == 0 { support::Block::Random(i as u64) } else { support::Block::Hole };
            Image::of(&path, &(0..blocks).map(fill).collect::<Vec<_>>());
            "random blocks (no mkfs.ext4 on this machine)".to_owned()
        }
    };
    screen.say(&format!("a volume           {}, {}, {what}", path.display(), size(bytes)));
    path
}

/// Secret and ClusterBackupTarget, as an administrator writes them.
async fn target(stage: &Stage, screen: &mut Screen) -> Result<(), String> {
    let (id, secret) = ACCESS_KEYS[0];
    let yaml = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s3, namespace: {NAMESPACE}}}\nstringData:\n  AWS_ACCESS_KEY_ID: {id}\n  AWS_SECRET_ACCESS_KEY: {secret}\n---\n\
         apiVersion: tidemark.dev/v1alpha1\nkind: ClusterBackupTarget\nmetadata: {{name: s3}}\nspec:\n  \
         s3: {{bucket: {BUCKET}, region: us-east-1, endpoint: \"{}\", forcePathStyle: true}}\n  \
         credentials: {{secretName: s3}}\n  allowedNamespaces: {{from: Names, names: [{NAMESPACE}]}}\n  default: true\n",
        stage.wire.endpoint()
    );
    apply(stage, screen, "target.yaml", &yaml).await;
    let ready = async || {
        let target = stage.targets.get("s3").await.ok()?;
        let conditions = target.status?.conditions;
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
    };
    wait(60, "ClusterBackupTarget s3 is Ready", ready).await?;
    screen.held(&format!("ClusterBackupTarget s3 is Ready ({:.0?} since the start)", screen.elapsed()));
    Ok(())
}

fn backup_yaml(stage: &Stage, name: &str) -> String {
    format!(
        "apiVersion: tidemark.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
         source:\n    hostDevice: {{path: {}, nodeName: this-machine, name: disk}}\n  \
         deadlines: {{stall: 5s}}\n  upload: {{concurrency: 2}}    # so that a cut comes between blocks, not among all of them\n  retry: {{limit: 0}}          # the demo asks for the second attempt itself\n",
        stage.volume.display()
    )
}

/// Writes the manifest where a person can find it again, shows the command and runs it.
async fn apply(stage: &Stage, screen: &mut Screen, name: &str, yaml: &str) {
    let path = stage.home.volumes().join(name);
    std::fs::write(&path, yaml).expect("the scratch directory is ours");
    screen.command(&format!("kubectl apply -f {name}"));
    stage.plane.kubectl(&["apply", "-f", &path.display().to_string()]).await;
}

async fn first_backup(stage: &mut Stage, screen: &mut Screen) -> Result<View, String> {
    screen.title("Monday: the first backup");
    let blocks = Blocks::of(&Image::open(&stage.volume));
    stage.wire.slow(upload_rate(blocks.count()));
    let yaml = backup_yaml(stage, "monday");
    screen.quote(&yaml);
    apply(stage, screen, "monday.yaml", &yaml).await;
    let mut watch = Watch::new(&stage.backups, "monday", (&stage.store, BUCKET), &blocks, &mut stage.tally);
    let view = watch.until(screen, 180, |view| view.is(BackupState::Completed) || view.is(BackupState::Error)).await?;
    screen.keep_bar();
    if !view.is(BackupState::Completed) {
        return Err(format!("monday ended in {:?}: {}", view.state, view.failure));
    }
    if view.acknowledged != blocks.count() {
        return Err(format!("monday acknowledged {} blocks, the volume has {}", view.acknowledged, blocks.count()));
    }
    screen.held(&format!(
        "Completed: {} blocks acknowledged, zeros and holes neither sent nor counted",
        view.acknowledged
    ));
    Ok(view)
}

/// Bytes per second at which so many blocks take `UPLOAD_SECONDS`.
fn upload_rate(blocks: i64) -> u64 {
    (blocks.max(1).cast_unsigned() * 2 * MIB / UPLOAD_SECONDS).max(2 * MIB)
}

/// Keeps a copy of today's volume, then writes a new file into the filesystem.
fn change_data(stage: &Stage, screen: &mut Screen) -> Result<PathBuf, String> {
    screen.title("Tuesday: data changes, and the wire is cut");
    let copy = stage.home.volumes().join("disk-as-of-monday.img");
    let copied = Command::new("cp").arg("--sparse=always").arg(&stage.volume).arg(&copy).status();
    copied.ok().filter(|status| status.success()).ok_or("cp of the volume failed")?;
    let image = Image::open(&stage.volume);
    let file = stage.home.volumes().join("video.mkv");
    let mut bytes = vec![0; usize::try_from(image.bytes() / 5).map_err(|e| e.to_string())?];
    support::image::fill_random(&mut bytes, 3);
    std::fs::write(&file, &bytes).map_err(|e| e.to_string())?;
    let debugfs = ["/usr/sbin/debugfs", "/sbin/debugfs"].iter().find(|path| Path::new(path).exists());
    let is_ext4 = image.has_ext4();
    let written = debugfs.filter(|_| is_ext4).is_some_and(|program| {
        let request = format!("write {} video.mkv", file.display());
        let output = Command::new(program).args(["-w", "-R", &request]).arg(&stage.volume).output();
        output.is_ok_and(|output| output.status.success())
    });
    if !written {
        image.write_at(image.bytes() / 2, &bytes);
    }
    std::fs::remove_file(&file).map_err(|e| e.to_string())?;
    let what = if written { "a new file, video.mkv" } else { "new blocks in its middle" };
    screen.say(&format!("the volume gets {what}, {}", size(bytes.len() as u64)));
    Ok(copy)
}

async fn cut_and_heal(stage: &mut Stage, screen: &mut Screen) -> Result<View, String> {
    let blocks = Blocks::of(&Image::open(&stage.volume));
    let yaml = backup_yaml(stage, "tuesday");
    apply(stage, screen, "tuesday.yaml", &yaml).await;
    let mut watch = Watch::new(&stage.backups, "tuesday", (&stage.store, BUCKET), &blocks, &mut stage.tally);
    let before = watch.look().await?.in_bucket;
    let new = blocks.count() - before;
    stage.wire.slow(upload_rate(new));
    // The bucket knows first; the status follows with the worker's next report.
    let third = before + (new / 3).max(1);
    let middle = watch.until(screen, 120, |view| view.in_bucket >= third || view.is(BackupState::Error)).await?;
    stage.wire.cut();
    let cut_at = std::time::Instant::now();
    screen.event(&format!(
        "✂ the wire is cut: every packet is lost from now on ({} of {new} new blocks are in the bucket)",
        middle.in_bucket - before
    ));
    let error = watch.until(screen, 60, |view| view.is(BackupState::Error)).await?;
    screen.keep_bar();
    screen.held(&format!("Error after {:.1} s, with its reason:", cut_at.elapsed().as_secs_f64()));
    screen.quote(&screen::wrapped(&error.failure).join("\n"));
    let unanswered = error.in_bucket - error.acknowledged;
    screen.held(&format!(
        "the bar stands at {}, the bucket holds {}{}",
        error.acknowledged,
        error.in_bucket,
        match unanswered {
            0 => String::new(),
            n => format!(": {n} arrived and the answer was lost, so they do not count yet"),
        }
    ));
    let later = watch.look().await?;
    if later.acknowledged != error.acknowledged || error.acknowledged >= blocks.count() {
        return Err(format!("The bar did not stop: {error:#?}, then {later:#?}"));
    }

    screen.title("Wednesday: the wire is mended, the same Backup goes on");
    stage.wire.heal();
    stage.wire.slow(upload_rate(new));
    let patch = r#"{"spec":{"retryRequest":"the wire is mended"}}"#;
    screen.command(&format!("kubectl patch backup tuesday --type=merge -p '{patch}'"));
    stage.plane.kubectl(&["patch", "backup", "tuesday", "-n", NAMESPACE, "--type=merge", "-p", patch]).await;
    let again = |view: &View| view.attempt > error.attempt && view.is(BackupState::Error);
    let view = watch.until(screen, 180, |view| view.is(BackupState::Completed) || again(view)).await?;
    screen.keep_bar();
    if !view.is(BackupState::Completed) {
        return Err(format!("tuesday ended in {:?} again: {}", view.state, view.failure));
    }
    let spared = view.reused + view.resumed;
    if spared < error.acknowledged {
        return Err(format!("{} blocks were acknowledged, and only {spared} were not sent again", error.acknowledged));
    }
    screen.held(&format!(
        "Completed in attempt {}: {spared} blocks found in the bucket, {} sent",
        view.attempt, view.uploaded
    ));
    match stage.store.blocks_sent_again() {
        again if again.is_empty() => screen.held("no acknowledged block was sent twice: the server counted every PUT"),
        again => {
            return Err(format!(
                "Law 6 broken: {} acknowledged blocks were sent again, {} first",
                again.len(),
                again[0]
            ));
        }
    }
    Ok(view)
}

/// Restores one day and compares it with the copy kept of it.
async fn restore(
    stage: &Stage,
    screen: &mut Screen,
    (name, view): (&str, &View),
    original: &Path,
) -> Result<(), String> {
    if name == "monday" {
        stage.wire.heal();
        screen.title("And back");
    }
    let out = stage.home.volumes().join(format!("restored-{name}.img"));
    let (id, secret) = ACCESS_KEYS[0];
    let endpoint = stage.wire.endpoint();
    let keys = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_ENDPOINTS", endpoint.as_str())];
    let (url, path) = (view.url.as_str(), out.display().to_string());
    screen.command(&format!("tidemark restore '{url}' restored-{name}.img"));
    run(&["restore", url, &path], &keys).await?;
    if let Some(difference) = support::image::difference(original, &out) {
        return Err(format!("The restored volume is not the one that was backed up: {difference}"));
    }
    let checked = check_filesystem(&out)?;
    screen.held(&format!("{name} is back, equal in every byte{checked}"));
    Ok(())
}

/// What the filesystem itself says, if this machine can ask it.
fn check_filesystem(image: &Path) -> Result<&'static str, String> {
    let program = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].iter().find(|path| Path::new(path).exists());
    let Some(program) = program.filter(|_| Image::open(image).has_ext4()) else { return Ok("") };
    let output = Command::new(program).args(["-f", "-n"]).arg(image).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(", and e2fsck finds it clean"),
        false => Err(format!("e2fsck of {}: {}", image.display(), String::from_utf8_lossy(&output.stdout))),
    }
}

fn summary(stage: &mut Stage, screen: &mut Screen) -> Result<(), String> {
    if let Some(status) = stage.operator.ended() {
        return Err(format!("The operator ended with {status}"));
    }
    screen.title(&format!("Every step held, in {:.0} s", screen.elapsed().as_secs_f64()));
    let samples = stage.tally.samples;
    screen
        .say(&format!("{samples} times the status was read and then the bucket counted: the status was never ahead."));
    screen
        .say("Next: make demo ARGS=--keep to play with it · docs/laws.md for what is promised and which test holds it");
    Ok(())
}

async fn stay(stage: &Stage, screen: &mut Screen) {
    let (id, secret) = ACCESS_KEYS[0];
    let parts = support::parts();
    screen.title("All of it is still up. In another terminal:");
    screen.quote(&format!(
        "export KUBECONFIG={}\nexport PATH={}:$PATH\nexport AWS_ENDPOINTS={} AWS_ACCESS_KEY_ID={id} AWS_SECRET_ACCESS_KEY={secret}\n\
         kubectl get backups -n {NAMESPACE}\n{} ls s3://{BUCKET}@us-east-1/\ncd {}   # the volume, the manifests, the restored images\ntail -f {}",
        stage.plane.kubeconfig().display(),
        parts.display(),
        stage.wire.endpoint(),
        support::operator::program().display(),
        stage.home.volumes().display(),
        stage.home.log().display()
    ));
    screen.say("Enter or Ctrl-C ends everything.");
    let (sender, enter) = tokio::sync::oneshot::channel();
    // A thread, not a task: reading a terminal cannot be interrupted, and must not keep this process from ending.
    std::thread::spawn(move || {
        let mut line = String::new();
        // No terminal means nobody can press Enter: Ctrl-C or SIGTERM it is, then.
        if std::io::stdin().read_line(&mut line).is_ok_and(|length| length > 0) {
            let _ = sender.send(());
        } else {
            std::mem::forget(sender);
        }
    });
    tokio::select! {
        _ = enter => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
