//! The store's socket: one connection at a time, one request at a time.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use anyhow::Context;
use hgs_protocol::{env::Env, wire::vsm};

use super::{
    protocol::{StoreReply, StoreRequest, read_frame, write_frame},
    state::Store,
};
use crate::vm::shielded::ShieldedVms;

/// Binds the socket anew.
pub(super) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    UnixListener::bind(path)
        .and_then(|listener| fs::set_permissions(path, Permissions::from_mode(0o600)).map(|()| listener))
        .with_context(|| format!("the VBS store cannot listen on {}", path.display()))
}

/// Serves until the process is killed.
pub(super) fn serve(
    listener: &UnixListener,
    mut store: Store,
    mut vms: ShieldedVms,
    remarks: &[String],
    env: &Env,
) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        if let Err(error) = converse(&mut stream, &mut store, &mut vms, remarks, env) {
            eprintln!("the agent's connection to the VBS store ended: {error}");
        }
    }
}

fn converse(
    stream: &mut UnixStream,
    store: &mut Store,
    vms: &mut ShieldedVms,
    remarks: &[String],
    env: &Env,
) -> io::Result<()> {
    while let Some(request) = read_frame::<StoreRequest>(stream)? {
        write_frame(stream, &answer(request, store, vms, remarks, env))?;
    }
    Ok(())
}

fn answer(
    request: StoreRequest,
    store: &mut Store,
    vms: &mut ShieldedVms,
    remarks: &[String],
    env: &Env,
) -> StoreReply {
    match request {
        StoreRequest::Describe => StoreReply::Description {
            encryption_key: hex::encode(vsm::encode_rsa1(store.secrets().encryption.public())),
            signing_key: hex::encode(vsm::encode_rsa1(store.secrets().signing.public())),
            remarks: remarks.to_vec(),
        },
        StoreRequest::Vm(request) => StoreReply::Vm(vms.answer(request, store, &mut env.rng())),
    }
}
