//! The data directory: private to its user, used by one supervisor at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// An opened data directory, locked until dropped.
pub(super) struct DataDir {
    run: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates what is missing and takes the lock.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let run = path.join("run");
        create_private_dir(&path.join("log"))?;
        create_private_dir(&run)?;
        let file = run.join("up.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&file);
        let lock = lock.with_context(|| format!("cannot write {}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { run, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another `parapet up` uses {}: stop it or set PARAPET_DATA_DIR to another directory",
                path.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", file.display())),
        }
    }

    pub(super) fn rendered_config(&self) -> PathBuf {
        self.run.join("envoy.yaml")
    }

    /// Copies the module here and removes the copies of earlier builds.
    pub(super) fn install_module(&self, module: &Path) -> anyhow::Result<PathBuf> {
        let installed = copy_module(module, &self.run)?;
        for entry in self.run.read_dir().with_context(|| format!("cannot read {}", self.run.display()))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("parapet-") && name.ends_with(".wasm") && entry.path() != installed {
                // A leftover costs half a megabyte and nothing else.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(installed)
    }
}

/// Copies the module into a directory under a name that holds its hash: Envoy keeps compiled modules by file name and
/// would run the old one when a file only changed.
pub(super) fn copy_module(module: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let bytes = std::fs::read(module).with_context(|| {
        format!("cannot read the filters' module {}: run scripts/build-wasm or set PARAPET_WASM", module.display())
    })?;
    if !bytes.starts_with(b"\0asm") {
        bail!(
            "{} is no WebAssembly module: set PARAPET_WASM to the one that scripts/build-wasm prints",
            module.display()
        );
    }
    let hash = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    let copy = directory.join(format!("parapet-{hash}.wasm"));
    if !copy.is_file() {
        write_private(&copy, &bytes)?;
    }
    Ok(copy)
}

/// Creates a directory and those above it, for this user only. One that exists stays as it is.
pub(super) fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.with_context(|| format!("cannot create {}: set PARAPET_DATA_DIR to a directory of yours", path.display()))
}

/// Replaces a file in one step, readable by its owner only: whoever reads it meanwhile sees the old or the new one.
pub(super) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let write = || {
        // A leftover may have other rights.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_for_its_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/data");
        let data = DataDir::open(&path).unwrap();
        let config = data.rendered_config();
        write_private(&config, b"x").unwrap();
        write_private(&config, b"y").unwrap();
        assert_eq!(std::fs::read(&config).unwrap(), b"y");
        for directory in [path.clone(), path.join("log"), path.join("run")] {
            assert_eq!(mode(&directory), 0o700, "{}", directory.display());
        }
        assert_eq!(mode(&config), 0o600);
    }

    #[test]
    fn one_supervisor_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path()).unwrap();
        let error = DataDir::open(root.path()).err().unwrap().to_string();
        assert!(error.contains("PARAPET_DATA_DIR"), "{error}");
        drop(first);
        assert!(DataDir::open(root.path()).is_ok());
    }

    #[test]
    fn another_module_gets_another_name_and_the_old_copy_goes() {
        let root = tempfile::tempdir().unwrap();
        let data = DataDir::open(&root.path().join("data")).unwrap();
        let module = root.path().join("parapet.wasm");
        std::fs::write(&module, b"\0asm one").unwrap();
        let first = data.install_module(&module).unwrap();
        assert_eq!(data.install_module(&module).unwrap(), first);
        std::fs::write(&module, b"\0asm two").unwrap();
        let second = data.install_module(&module).unwrap();
        assert_ne!(first, second);
        assert!(!first.exists() && second.is_file());
        std::fs::write(&module, b"<html>").unwrap();
        assert!(data.install_module(&module).unwrap_err().to_string().contains("no WebAssembly module"));
    }
}
