use proptest::prelude::*;

use super::*;

fn pcr(index: u8) -> PcrIndex {
    PcrIndex::new(index).unwrap()
}

fn event(format_is_sha1: bool) -> impl Strategy<Value = Event> {
    let digests = match format_is_sha1 {
        true => proptest::collection::vec(any::<u8>(), 20)
            .prop_map(|d| vec![(Bank::Sha1, d)])
            .boxed(),
        false => (
            proptest::option::of(proptest::collection::vec(any::<u8>(), 20)),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 32)),
        )
            .prop_map(|(a, b)| {
                let a = a.map(|d| (Bank::Sha1, d));
                let b = b.map(|d| (Bank::Sha256, d));
                a.into_iter().chain(b).collect()
            })
            .boxed(),
    };
    let kind = prop_oneof![Just(3u32), Just(4), Just(6), Just(0x8000_0001), any::<u32>()];
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    (0u32..24, kind, digests, data).prop_map(|(pcr, kind, digests, data)| Event {
        pcr,
        event_type: EventType(kind),
        digests,
        data,
        offset: 0,
    })
}

fn log() -> impl Strategy<Value = BootLog> {
    let agile = proptest::collection::vec(event(false), 0..6).prop_map(|events| {
        let mut log = BootLogBuilder::new(0).log;
        if let Format::CryptoAgile(spec) = &mut log.format {
            spec.algorithms = vec![(Bank::Sha1, 20), (Bank::Sha256, 32)];
        }
        log.events = events;
        log
    });
    let plain = proptest::collection::vec(event(true), 1..6).prop_map(|events| BootLog {
        format: Format::Sha1,
        events,
        padding: None,
    });
    prop_oneof![agile, plain]
}

proptest! {
    #[test]
    fn what_is_encoded_parses_to_the_same_log(log in log()) {
        let bytes = log.encode();
        let mut again = BootLog::parse(&bytes).unwrap();
        prop_assert_eq!(again.encode(), bytes);
        for event in &mut again.events {
            event.offset = 0;
        }
        // A last record of nothing but zeros is indistinguishable from padding.
        if again.padding.is_none() {
            prop_assert_eq!(again, log);
        }
    }

    #[test]
    fn bytes_that_parse_encode_to_themselves(log in log(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = log.encode();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(log) = BootLog::parse(&bytes) {
            prop_assert_eq!(log.encode(), bytes);
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let reading = BootLog::read(&bytes);
        let _ = reading.log.replay(Bank::Sha256);
        let mut headed = BootLogBuilder::new(3).finish();
        headed.extend_from_slice(&bytes);
        let _ = BootLog::read(&headed);
    }

    #[test]
    fn a_cut_log_is_refused_or_shorter(log in log(), at in any::<prop::sample::Index>()) {
        let bytes = log.encode();
        let at = at.index(bytes.len());
        if let Ok(cut) = BootLog::parse(&bytes[..at]) {
            prop_assert!(cut.events.len() <= log.events.len());
        }
    }
}

#[test]
fn a_built_log_replays_to_what_was_extended() {
    let mut builder = BootLogBuilder::new(3);
    let a = builder.measure(pcr(0), EventType::POST_CODE, *b"firmware");
    let b = builder.separator(pcr(0));
    let log = BootLog::parse(&builder.finish()).unwrap();
    let mut value = [0; 32];
    value[31] = 3;
    for digest in [a, b] {
        value = crate::crypto::sha256(&[value, digest].concat());
    }
    assert_eq!(log.replay(Bank::Sha256)[&pcr(0)], value);
    assert_eq!(log.startup_locality(), Some(3));
}

#[test]
fn padding_of_zeros_or_ones_is_kept_apart() {
    let mut builder = BootLogBuilder::new(0);
    builder.separator(pcr(7));
    for byte in [0x00, 0xFF] {
        let mut bytes = builder.finish();
        let length = bytes.len();
        bytes.resize(length + 77, byte);
        let log = BootLog::parse(&bytes).unwrap();
        assert_eq!(log.padding(), Some(Padding { byte, length: 77 }));
        assert_eq!(log.events().len(), 2);
        bytes.push(1);
        assert!(BootLog::parse(&bytes).is_err());
    }
}

#[test]
fn a_locality_named_late_does_not_count() {
    let mut builder = BootLogBuilder::new(0);
    builder.log.events.clear();
    builder.separator(pcr(0));
    builder.note(pcr(0), [STARTUP_LOCALITY, &[3]].concat());
    assert_eq!(builder.log.startup_locality(), None);
}

#[test]
fn digests_of_an_unannounced_or_repeated_bank_are_refused() {
    let mut builder = BootLogBuilder::new(0);
    builder.separator(pcr(7));
    let good = builder.log.clone();
    builder.log.events[1].digests = vec![(Bank::Sha384, vec![0; 48])];
    assert!(matches!(
        BootLog::parse(&builder.finish()),
        Err(BootLogError::Algorithm { .. })
    ));
    builder.log = good;
    builder.log.events[1].digests.push((Bank::Sha256, vec![0; 32]));
    assert!(matches!(
        BootLog::parse(&builder.finish()),
        Err(BootLogError::Digests { .. })
    ));
}

#[test]
fn a_measured_record_needs_a_pcr_that_exists() {
    let mut builder = BootLogBuilder::new(0);
    builder.separator(pcr(7));
    builder.log.events[1].pcr = 24;
    assert!(matches!(
        BootLog::parse(&builder.finish()),
        Err(BootLogError::Pcr { pcr: 24, .. })
    ));
    builder.log.events[1].event_type = EventType::NO_ACTION;
    assert!(BootLog::parse(&builder.finish()).is_ok());
}
