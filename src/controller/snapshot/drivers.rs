//! What is known of CSI drivers, and what an administrator says of them (`--exposure-settings`, written by the chart).
//!
//! A filesystem volume is backed up as the block device below it. Some drivers have no device below: what they hold are
//! directories, or files that are no image. They are refused with the reason, for no worker could make sense of their bytes.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

/// Drivers whose filesystem volumes are no devices. The hostpath driver's filesystem snapshots are tar archives.
const DIRECTORIES: [&str; 8] = [
    "hostpath.csi.k8s.io",
    "nfs.csi.k8s.io",
    "smb.csi.k8s.io",
    "efs.csi.aws.com",
    "file.csi.azure.com",
    "filestore.csi.storage.gke.io",
    "cephfs.csi.ceph.com",
    "rook-ceph.cephfs.csi.ceph.com",
];

/// By driver.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(transparent)]
pub struct ExposureSettings(BTreeMap<String, DriverSettings>);

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DriverSettings {
    /// Class of the volume that a snapshot is exposed as. Absent: the source volume's own.
    pub storage_class: Option<String>,
    pub access_mode: AccessMode,
    /// Overrides what we know of its filesystem volumes.
    pub filesystem_volumes: Option<Filesystem>,
}

/// How the exposed volume is asked for. It is read only in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum AccessMode {
    #[default]
    ReadWriteOnce,
    /// Without a copy on some drivers, and not for block volumes on others.
    ReadOnlyMany,
    ReadWriteOncePod,
}

impl AccessMode {
    pub fn as_str(self) -> &'static str {
        match self {
            AccessMode::ReadWriteOnce => "ReadWriteOnce",
            AccessMode::ReadOnlyMany => "ReadOnlyMany",
            AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }
}

/// What a driver's filesystem volume is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Filesystem {
    /// A block device: its snapshot can be read as one.
    OnDevice,
    /// Anything else.
    Directory,
}

impl ExposureSettings {
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        serde_saphyr::from_str(&text).map_err(|e| e.to_string())
    }

    pub fn of(&self, driver: &str) -> DriverSettings {
        self.0.get(driver).cloned().unwrap_or_default()
    }

    pub fn filesystem(&self, driver: &str) -> Filesystem {
        let known = if DIRECTORIES.contains(&driver) { Filesystem::Directory } else { Filesystem::OnDevice };
        self.of(driver).filesystem_volumes.unwrap_or(known)
    }
}
