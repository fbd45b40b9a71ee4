//! Restores onto real block devices: loop devices over files in memory.
//!
//! Loop devices need root and a kernel that has them. Where they cannot be had these tests say so, each with its number
//! and the reason, and check nothing.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use tidemark::{
    model::FailureReason,
    restore::{Left, Overwrite, RestoreJob},
};

use super::{World, to_the_end};
use crate::support::{Block, image::BLOCK};

/// A loop device, detached when it is dropped.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Over a new file of so many bytes, each of them 0xAB; `None` if there are no loop devices here.
    fn of(file: &Path, bytes: usize) -> Option<Self> {
        std::fs::write(file, vec![0xAB; bytes]).expect("the scratch directory has room");
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let why = match attached {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).expect("a path").trim().into();
                return Some(Self { path });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("losetup: {error}"),
        };
        static SKIPPED: AtomicU32 = AtomicU32::new(0);
        eprintln!("SKIPPED device test {}: no loop device can be had here ({why})", SKIPPED.fetch_add(1, SeqCst) + 1);
        None
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("a device can be read")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|s| s.success()), "{} stays attached", self.path.display());
    }
}

/// A volume with holes whose size is no multiple of anything.
async fn world(purpose: &str) -> World {
    let blocks = [Block::Random(1), Block::Hole, Block::Text(2), Block::Zero, Block::Hole, Block::Random(3)];
    let mut world = World::new(purpose, &blocks).await;
    let cut = File::options().write(true).open(world.image.path()).expect("open");
    cut.set_len(6 * BLOCK as u64 - 12_345).expect("cut");
    world.back_up(2).await;
    world
}

fn onto(world: &World, device: &LoopDevice, overwrite: Overwrite) -> RestoreJob {
    RestoreJob { target: device.path.clone(), overwrite, ..world.job() }
}

/// The device begins with the volume, and what lies behind it was left alone.
fn assert_restored(world: &World, device: &LoopDevice, what: &str) {
    let (held, volume) = (device.read(), std::fs::read(world.image.path()).expect("the image"));
    let differs = held.iter().zip(&volume).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: a byte differs");
    assert!(held[volume.len()..].iter().all(|byte| *byte == 0xAB), "{what}: bytes behind the volume were written");
}

#[tokio::test]
async fn a_device_holds_the_volume_to_the_byte_and_nothing_behind_it_changes() {
    let world = world("device-whole").await;
    let Some(device) = LoopDevice::of(&world.folder.path().join("disk"), 7 * BLOCK) else { return };
    let error = to_the_end(onto(&world, &device, Overwrite::Refuse)).await.error();
    assert!(error.to_string().contains("block device") && error.to_string().contains("--force"), "{error}");
    assert!(device.read().iter().all(|byte| *byte == 0xAB), "untouched");

    let ran = to_the_end(onto(&world, &device, Overwrite::Replace)).await;
    assert_eq!((ran.summary().blocks, ran.summary().reused_blocks, ran.summary().read_back_blocks), (3, 0, 3));
    assert_restored(&world, &device, "replaced");

    world.server.forget_requests();
    let again = to_the_end(onto(&world, &device, Overwrite::Reuse)).await;
    assert_eq!((again.summary().reused_blocks, world.asked().len()), (3, 0), "all of it is there");
    let disk = File::options().write(true).open(&device.path).expect("open");
    disk.write_all_at(b"rot", BLOCK as u64 * 2 + 9).expect("a block of data");
    disk.write_all_at(b"junk", BLOCK as u64 * 4 + 99).expect("a hole");
    disk.write_all_at(b"end", 6 * BLOCK as u64 - 12_400).expect("the last, partial block");
    disk.sync_all().expect("synced");
    drop(disk);
    let repaired = to_the_end(onto(&world, &device, Overwrite::Reuse)).await;
    assert_eq!((repaired.summary().reused_blocks, world.asked().len()), (1, 2));
    assert_restored(&world, &device, "repaired");
}

#[tokio::test]
async fn a_device_that_is_too_small_or_in_use_is_refused_before_a_byte_is_written() {
    let world = world("device-refused").await;
    let file = world.folder.path().join("disk");
    let Some(device) = LoopDevice::of(&file, 5 * BLOCK) else { return };
    for overwrite in [Overwrite::Replace, Overwrite::Reuse] {
        let error = to_the_end(onto(&world, &device, overwrite)).await.error();
        let (bytes, volume) = (5 * BLOCK, 6 * BLOCK - 12_345);
        assert!(error.to_string().contains(&format!("has {bytes} bytes, the volume {volume}")), "{error}");
        assert_eq!((error.reason(), error.left()), (FailureReason::TargetRefused, Some(Left::Untouched)));
    }
    assert!(device.read().iter().all(|byte| *byte == 0xAB), "untouched");
    drop(device);

    let Some(device) = LoopDevice::of(&file, 7 * BLOCK) else { return };
    // As a mounted file system, a volume manager or another restore holds it.
    let flags = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let holder = File::options().read(true).write(true).custom_flags(flags).open(&device.path).expect("free");
    let error = to_the_end(onto(&world, &device, Overwrite::Replace)).await.error();
    assert!(error.to_string().contains("mounted or in use; unmount it"), "{error}");
    drop(holder);
    assert!(device.read().iter().all(|byte| *byte == 0xAB), "untouched");
    to_the_end(onto(&world, &device, Overwrite::Replace)).await.summary();
    assert_restored(&world, &device, "when it is free");
}

#[tokio::test]
async fn a_mounted_device_is_refused() {
    let world = world("device-mounted").await;
    let Some(device) = LoopDevice::of(&world.folder.path().join("disk"), 16 * BLOCK) else { return };
    let mkfs = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.path).status();
    let folder = world.folder.path().join("mounted");
    std::fs::create_dir(&folder).expect("made");
    let is_mounted = mkfs.is_ok_and(|s| s.success())
        && Command::new("mount").arg(&device.path).arg(&folder).status().is_ok_and(|s| s.success());
    if !is_mounted {
        return eprintln!("SKIPPED the mounted device: mkfs.ext4 and mount do not work here");
    }
    let error = to_the_end(onto(&world, &device, Overwrite::Replace)).await.error();
    let unmounted = Command::new("umount").arg(&folder).status();
    assert!(unmounted.is_ok_and(|s| s.success()), "{} stays mounted", folder.display());
    assert!(error.to_string().contains("mounted or in use"), "{error}");
    assert_eq!(error.left(), Some(Left::Untouched));
}
