//! The RTPM context (MS-HGSA 2.2.2.25 to 2.2.2.27), the TPM commands and answers in it, and the boot log.

use hgs_protocol::{
    tpm::{ResponseCode, command::CommandCode},
    wire::boot_log::{Bank, BootLog},
};

use super::{Ends, Field, Reader, parts_of};

/// A context, in either direction.
pub(super) fn context(name: &str, bytes: &[u8]) -> Field {
    if bytes.is_empty() {
        return Field::leaf(name, "empty: the exchange begins", bytes);
    }
    parts_of(name, bytes, |reader, parts| {
        reader.little("Size", 4, parts)?;
        reader.little("Version", 4, parts)?;
        let blobs = reader.little("DataBlobCount", 4, parts)?;
        reader.little("Reserved", 4, parts)?;
        let length = reader.little("EncContext: length of EncryptedBuffer", 4, parts)?;
        reader.bytes("EncContext: nonce", 12, parts)?;
        reader.bytes("EncContext: tag", 16, parts)?;
        reader.bytes("EncryptedBuffer (the server's sealed state)", length, parts)?;
        for _ in 0..blobs.min(MOST_BLOBS) {
            blob(reader, parts)?;
        }
        Ok(())
    })
}

fn blob(reader: &mut Reader<'_>, parts: &mut Vec<Field>) -> Result<(), Ends> {
    let whole = reader.0;
    let mut inside = Vec::new();
    let kind = reader.little("Type", 4, &mut inside)?;
    let length = reader.little("Length", 4, &mut inside)?;
    let payload = reader.take("DataBlob", length)?;
    let (name, field) = match kind {
        1 if payload.is_empty() => ("WBCL wanted", None),
        1 => ("WBCL", Some(boot_log(payload))),
        2 if payload.is_empty() => ("TPM_DEVICE_INFO wanted", None),
        2 => ("TPM_DEVICE_INFO", Some(device_info(payload))),
        3 => ("TPM", Some(tpm(payload))),
        _ => ("a blob of no known type", Some(Field::leaf("payload", "", payload))),
    };
    inside.extend(field);
    let bytes = whole
        .get(..whole.len().saturating_sub(reader.0.len()))
        .unwrap_or_default();
    parts.push(Field::of(format!("DataBlob: {name}"), bytes, inside));
    Ok(())
}

fn device_info(payload: &[u8]) -> Field {
    parts_of("TPM_DEVICE_INFO", payload, |reader, parts| {
        reader.little("structVersion", 4, parts)?;
        reader.little("tpmVersion", 4, parts)?;
        reader.little("tpmInterfaceType", 4, parts)?;
        reader.little("tpmImpRevision", 4, parts)?;
        Ok(())
    })
}

/// A TPM command or answer; which it is shows in its third field: commands are 0x1xx, answers 0 or an error.
fn tpm(payload: &[u8]) -> Field {
    let code = payload
        .get(6..10)
        .map(|code| code.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte)));
    let command = code.and_then(command_name);
    let name = match command {
        Some(name) => format!("command {name}"),
        None => "answer".to_owned(),
    };
    let mut field = parts_of(name, payload, |reader, parts| {
        let tag = reader.big("tag", 2, parts)?;
        reader.big(
            if command.is_some() {
                "commandSize"
            } else {
                "responseSize"
            },
            4,
            parts,
        )?;
        reader.big(
            if command.is_some() {
                "commandCode"
            } else {
                "responseCode"
            },
            4,
            parts,
        )?;
        if command.is_none() && tag == SESSIONS {
            let length = usize::try_from(reader.big("parameterSize", 4, parts)?).map_err(|_| Ends("parameterSize"))?;
            reader.bytes("parameters", length, parts)?;
            reader.bytes("authorizationArea", reader.0.len(), parts)?;
        } else if command == Some("TPM2_PCR_Read") && tag == SESSIONS {
            let length = reader.big("authorizationSize", 4, parts)?;
            let length = usize::try_from(length).map_err(|_| Ends("authorizationSize"))?;
            reader.bytes("authorizationArea", length, parts)?;
            reader.bytes("pcrSelectionIn", reader.0.len(), parts)?;
        } else if !reader.0.is_empty() {
            reader.bytes("handles and parameters", reader.0.len(), parts)?;
        }
        Ok(())
    });
    if let (None, Some(code)) = (command, code) {
        field.value = format!("TPM_RC_{}", ResponseCode(code).name());
    }
    field
}

fn command_name(code: u32) -> Option<&'static str> {
    match CommandCode(code) {
        CommandCode::READ_PUBLIC => Some("TPM2_ReadPublic"),
        CommandCode::START_AUTH_SESSION => Some("TPM2_StartAuthSession"),
        CommandCode::PCR_READ => Some("TPM2_PCR_Read"),
        _ => None,
    }
}

/// The boot log behind its length, event by event.
fn boot_log(payload: &[u8]) -> Field {
    let (length, log) = payload.split_at_checked(4).unwrap_or((payload, &[]));
    let mut parts = vec![Field::leaf("length", format!("{} bytes follow", log.len()), length)];
    match BootLog::parse(log) {
        Ok(read) => {
            for event in read.events() {
                let digest = event.digest(Bank::Sha256).map(hex::encode).unwrap_or_default();
                let pcr = match event.pcr_index() {
                    Some(pcr) => format!("PCR {}", pcr.get()),
                    None => format!("PCR 0x{:x}", event.pcr),
                };
                parts.push(Field::leaf(
                    format!("{pcr} {}", event.event_type),
                    format!("sha256 {digest}"),
                    event.data.clone(),
                ));
            }
        }
        Err(error) => parts.push(Field::unread("TCG log", log, error)),
    }
    let mut field = Field::of("WBCL", payload, parts);
    field.value = "the boot log".to_owned();
    field
}

/// TPM_ST_SESSIONS.
const SESSIONS: u64 = 0x8002;
const MOST_BLOBS: usize = 64;
