//! Copies files in and out, as archives.

use super::common::guest_error;
use crate::frame::{self, Frame};
use crate::serve::{refuse, reply};
use crate::transfer::{self, Unpacking};
use crate::{Error, Result};
use mvm_archive::{Packer, Trust, name_of};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};

/// Unpacks the archive that follows below `path`. With `notes`, the second reply lists what could
/// not be preserved.
pub async fn put(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: String,
    notes: bool,
) -> Result<()> {
    let target = PathBuf::from(&path);
    std::fs::create_dir_all(&target).map_err(|e| guest_error(&format!("make {path}"), &e))?;
    reply(stream, &()).await?;
    let mut unpacking =
        Unpacking::begin(move |from| mvm_archive::unpack(from, &target, Trust::Full));
    let mut whole = false;
    loop {
        match frame::read(stream).await? {
            // After an error of the unpacker, the rest is read and dropped.
            Some(Frame::Data(bytes)) => _ = unpacking.take(bytes).await,
            Some(Frame::End) => {
                whole = true;
                break;
            }
            _ => break,
        }
    }
    match unpacking.end().await? {
        Ok(kept) if whole && notes => reply(stream, &kept).await,
        Ok(_) if whole => reply(stream, &()).await,
        Ok(_) => Err(Error::Broken("the archive ended too early".to_owned())),
        Err(cause) => refuse(stream, &guest_error(&format!("unpack to {path}"), &cause)).await,
    }
}

/// Sends `path` as an archive whose entries begin with its last component. With `notes`, a reply
/// before the end lists what could not be preserved.
pub async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: String,
    notes: bool,
) -> Result<()> {
    let source = PathBuf::from(&path);
    let failed = |cause| guest_error(&format!("read {path}"), &cause);
    std::fs::symlink_metadata(&source).map_err(failed)?;
    reply(stream, &()).await?;
    let pack = move |to: &mut dyn std::io::Write| {
        let mut packer = Packer::new(to);
        packer.add(&source, &name_of(&source))?;
        Ok(packer.finish()?.1)
    };
    let kept = transfer::send(stream, pack).await?.map_err(failed)?;
    if notes {
        reply(stream, &kept).await?;
    }
    frame::write(stream, &Frame::End).await
}
