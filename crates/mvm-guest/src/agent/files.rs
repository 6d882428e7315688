//! Files in and out, as tar archives.

use super::{guest_error, refuse, reply};
use crate::frame::{self, Frame};
use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::io::SyncIoBridge;

const BUFFER: usize = 64 * 1024;

/// Unpacks the archive that follows below `path`.
pub async fn put(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: String) -> Result<()> {
    let target = PathBuf::from(&path);
    std::fs::create_dir_all(&target).map_err(|e| guest_error(&format!("make {path}"), &e))?;
    reply(stream, &()).await?;
    let (mut to_unpacker, from_host) = tokio::io::duplex(4 * BUFFER);
    let reader = SyncIoBridge::new(from_host);
    let unpacking = tokio::task::spawn_blocking(move || unpack(reader, &target));
    let mut whole = false;
    loop {
        match frame::read(stream).await? {
            // After an error of the unpacker the rest is read and dropped.
            Some(Frame::Data(bytes)) => drop(to_unpacker.write_all(&bytes).await),
            Some(Frame::End) => {
                whole = true;
                break;
            }
            _ => break,
        }
    }
    drop(to_unpacker);
    let outcome = unpacking.await.map_err(|e| Error::Broken(e.to_string()))?;
    match outcome {
        Ok(()) if whole => reply(stream, &()).await,
        Ok(()) => Err(Error::Broken("the archive ended too early".to_owned())),
        Err(cause) => refuse(stream, &guest_error(&format!("unpack to {path}"), &cause)).await,
    }
}

fn unpack(reader: impl std::io::Read, target: &Path) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    archive.unpack(target).map_err(root_cause)?;
    // Two blocks of zeros end an archive; the host may pad it further.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
    Ok(())
}

/// The tar crate wraps errors in words; what the system said is at the bottom.
fn root_cause(error: std::io::Error) -> std::io::Error {
    let message = error.to_string();
    let inner =
        error.get_ref().and_then(|e| e.source()).and_then(|e| e.downcast_ref::<std::io::Error>());
    std::io::Error::new(inner.map_or(error.kind(), std::io::Error::kind), message)
}

/// Sends `path` as an archive whose entries begin with its last component.
pub async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: String) -> Result<()> {
    let source = PathBuf::from(&path);
    let meta =
        std::fs::symlink_metadata(&source).map_err(|e| guest_error(&format!("read {path}"), &e))?;
    reply(stream, &()).await?;
    let (to_host, mut from_packer) = tokio::io::duplex(4 * BUFFER);
    let writer = SyncIoBridge::new(to_host);
    let packing = tokio::task::spawn_blocking(move || pack(writer, &source, meta.is_dir()));
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from_packer.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        frame::write(stream, &Frame::Data(buffer[..count].to_vec())).await?;
    }
    match packing.await.map_err(|e| Error::Broken(e.to_string()))? {
        Ok(()) => frame::write(stream, &Frame::End).await,
        Err(cause) => Err(guest_error(&format!("read {path}"), &cause)),
    }
}

fn pack(writer: impl Write, source: &Path, is_dir: bool) -> std::io::Result<()> {
    let name = source.file_name().map_or_else(|| PathBuf::from("root"), PathBuf::from);
    let mut archive = tar::Builder::new(writer);
    archive.follow_symlinks(false);
    if is_dir {
        archive.append_dir_all(&name, source)?;
    } else {
        archive.append_path_with_name(source, &name)?;
    }
    archive.into_inner()?.flush()
}
