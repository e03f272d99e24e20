use proptest::prelude::*;

use super::*;
use crate::machine::boot::variable;

/// A record of TCG 1.2.
fn sha1_record(pcr: u32, event_type: EventType, measured: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let digest = Bank::Sha1.digest(&[measured]).unwrap();
    let head = [pcr, event_type.0].map(u32::to_le_bytes).concat();
    [head, digest, length.to_le_bytes().to_vec(), data.to_vec()].concat()
}

#[test]
fn an_old_log_gets_the_digests_that_can_be_had() {
    let secure_boot = variable(GLOBAL_VARIABLE, "SecureBoot", &[1]);
    let log = [
        sha1_record(0, EventType::S_CRTM_VERSION, b"1.0", b"1.0"),
        sha1_record(1, EventType::EFI_VARIABLE_BOOT, &[1], &secure_boot),
        sha1_record(4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"an image", b"its path"),
        sha1_record(17, EventType::ACTION, b"late", b"late"),
        sha1_record(0, EventType::NO_ACTION, b"", b"a remark"),
    ];
    let template = Template::read(&log.concat()).unwrap();
    let image = Bank::Sha1.digest(&[b"an image"]).unwrap();
    let digests: Vec<_> = template.records.iter().map(|record| record.digest).collect();
    assert_eq!(digests, [None, Some(sha256(&[1])), Some(sha256(&image))]);
    assert_eq!(
        template.remarks,
        [
            "records of the template: 3 without a SHA-256 digest in the template",
            "records of the template: 1 of them without what was measured: their digest here is the SHA-256 of the template's digest",
            "records of the template: 1 left out, of PCRs that no static boot extends",
            "records of the template: 1 left out, since a TPM measures none of their kind",
        ]
    );
}

/// A log as Windows writes it: flags in PCR 12 and again in PCR 13, keys, caps.
fn windows() -> Vec<u8> {
    let mut builder = BootLogBuilder::new(3);
    let pcr = |pcr| PcrIndex::new(pcr).unwrap();
    builder.separator(pcr(7));
    let hidden = Tag::container(id::TRUSTPOINT_AGGREGATION, &[Tag::boolean(id::OSKERNELDEBUG, false)]);
    let flags = [
        Tag::boolean(id::OSKERNELDEBUG, false),
        Tag::u64(id::VSM_LAUNCH_TYPE, 1),
        Tag::u64(id::BOOTCOUNTER, 77),
        hidden,
    ];
    builder.tagged(pcr(12), [Tag::container(id::TRUSTBOUNDARY, &flags)]);
    builder.tagged(pcr(13), [Tag::boolean(id::OSKERNELDEBUG, false)]);
    builder.tagged(
        pcr(12),
        [Tag::new(id::VSM_IDK_INFO, [1]), Tag::new(id::VSM_IDKS_INFO, [2])],
    );
    for cap in [11, 12, 13, 14] {
        builder.separator(pcr(cap));
    }
    builder.finish()
}

fn values(records: &[Record], pcr: u8, id: u32) -> Vec<Option<u64>> {
    let of_pcr = records.iter().filter(|record| record.pcr == pcr && record.is_tagged());
    let tags = of_pcr.flat_map(|record| sipa::measured_leaves(&record.data).unwrap());
    tags.filter(|tag| tag.id == id).map(|tag| tag.integer()).collect()
}

#[test]
fn only_what_identifies_a_host_changes_unless_a_dial_says_so() {
    let template = Template::read(&windows()).unwrap();
    let script = template.script(&Dials::default(), AppliedDials::Changed, 5, "host01");
    assert_eq!((script.locality, script.vsm), (3, true));
    let measured = [script.before.clone(), script.after(None)].concat();
    assert_eq!(measured.len(), template.records.len());
    let changed = measured.iter().zip(&template.records).filter(|(now, then)| now != then);
    assert_eq!(changed.count(), 1, "the record with the counter");
    assert_eq!(values(&measured, 12, id::BOOTCOUNTER), [Some(5)]);
    assert!(
        holds(&script.after[0], &[id::VSM_IDK_INFO]),
        "the store opens before its keys"
    );

    let dials = Dials {
        uefi_debug: true,
        omit: ["VSM_IDK_INFO".to_owned()].into(),
        ..Dials::default()
    };
    let script = template.script(&dials, AppliedDials::Changed, 5, "host01");
    let measured = [script.before.clone(), script.after(None)].concat();
    assert_eq!(
        values(&measured, 12, id::OSKERNELDEBUG),
        [Some(1)],
        "what is unmeasured stays"
    );
    assert_eq!(values(&measured, 13, id::OSKERNELDEBUG), [Some(1)]);
    assert!(!has_tag(&measured, id::VSM_IDK_INFO, |_| true));
    assert_eq!(
        values(&measured, 12, id::DUMPS_DISABLED),
        [],
        "only what differs is applied"
    );

    let script = template.script(&dials, AppliedDials::All, 5, "host01");
    let measured = [script.before.clone(), script.after(None)].concat();
    assert_eq!(values(&measured, 12, id::DUMPS_DISABLED), [Some(1)]);
    assert!(holds(&script.after[0], &[id::VSM_IDKS_INFO]));

    let dials = Dials {
        vsm: false,
        ..Dials::default()
    };
    let script = template.script(&dials, AppliedDials::Changed, 5, "host01");
    assert!(!script.vsm && !has_tag(&script.after, id::VSM_IDKS_INFO, |_| true));
    assert_eq!(values(&script.before, 12, id::VSM_LAUNCH_TYPE), [Some(0)]);
}

proptest! {
    #[test]
    fn hostile_templates_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at: proptest::sample::Index, with: u8) {
        let mut changed = windows();
        let at = at.index(changed.len());
        changed[at] = with;
        for log in [bytes, changed] {
            if let Ok(template) = Template::read(&log) {
                for applied in [AppliedDials::Changed, AppliedDials::All] {
                    let script = template.script(&Dials::default(), applied, 1, "host01");
                    prop_assert!(script.before.len() + script.after(None).len() >= template.records.len());
                }
            }
        }
    }
}
