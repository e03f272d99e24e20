//! A thousand generations of one VM: at every power-on the KPS rolls the transport key and the guest state is
//! sealed anew, so that what a thief once took opens nothing that came later.
//!
//! The KPS is its story, the host's checks and the state's sealing are those of a real power-on; only processes
//! and sockets between them are left out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use guarded_host_sim::vm::{
    VmId,
    checkpoint::Checkpoints,
    security::{Kind, Security},
    state::{Age, GuestState, StateError, StateHeader, VtpmState},
};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest, TrustedSigner,
    },
    protector::{ChainCache, GuardianKeys, KeyProtector, OpenedRelease, check_roll, open_release},
    secret::{Secret32, TransportKey},
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};
use kps::roll::{Guardian, roll_transport_key};

const GENERATIONS: usize = 1000;
/// When the thief copies protector and state.
const THEFT: usize = 400;

/// An HGS with one healthy host.
struct Fabric {
    keys: GuardianKeys,
    signers: [TrustedSigner; 1],
    host: RsaPrivateKey,
    certificate: Vec<u8>,
    chains: ChainCache,
    now: UnixTime,
}

impl Fabric {
    fn new(keys: GuardianKeys, now: UnixTime) -> Fabric {
        let signer = AttestationSigner::generate(now, &mut OsRandom).unwrap();
        let host = RsaPrivateKey::generate_2048().unwrap();
        let ask = HealthCertificateRequest {
            key: host.public().clone().into(),
            kind: CertificateKind::Encryption,
            mode: AttestationMode::Tpm,
            policies: Vec::new(),
            issued_at: now,
            lifetime: Duration::from_secs(3600),
        };
        Fabric {
            certificate: signer.issue(&ask, &mut OsRandom).unwrap(),
            signers: [TrustedSigner::from_certificate(signer.certificate_der()).unwrap()],
            chains: ChainCache::new(1 << 20),
            keys,
            host,
            now,
        }
    }

    /// One roll as the host asks for it: the egress protector and both keys, checked as a host checks them.
    fn roll(&self, protector: &[u8]) -> (Vec<u8>, OpenedRelease) {
        let guardian = Guardian {
            keys: &self.keys,
            signers: &self.signers,
            rules: &AcceptanceRules::default(),
            max_offline_unwraps: 0,
            allow_sha1_oaep: false,
            chains: &self.chains,
        };
        let ask = RollTransportKeyRequest::new(protector.to_vec(), self.certificate.clone());
        let release = roll_transport_key(&ask, ServiceVersion::V2, &guardian, self.now, &mut OsRandom).unwrap();
        let keys = open_release(&release.response, &self.host).unwrap();
        let egress = release.response.egress_protector;
        check_roll(protector, &egress, &keys.egress).unwrap();
        (egress, keys)
    }
}

fn opens(state: &[u8], key: &TransportKey) -> bool {
    match GuestState::open(state, key) {
        Ok(_) => true,
        Err(StateError::Sealed) => false,
        Err(StateError::Format) => panic!("no guest state"),
    }
}

fn a_thousand_generations(owner: &GuardianKeys, hgs: GuardianKeys, now: UnixTime) {
    let rng = &mut OsRandom;
    let fabric = Fabric::new(hgs, now);
    let (first, key) = KeyProtector::create(owner, &[fabric.keys.guardian().unwrap()], rng).unwrap();
    let guest = GuestState {
        header: StateHeader {
            vm: VmId::random(rng),
            age: Age::rolled(1),
            security: Security::of(Kind::Shielded),
        },
        checkpoints: Checkpoints::default(),
        vtpm: VtpmState {
            key: Secret32::random(rng),
            permanent: vec![7; 6000],
        },
    };
    let (mut protectors, mut states, mut keys) = (vec![first.to_xml()], vec![guest.seal(&key, rng)], vec![key]);
    for generation in 1..=GENERATIONS {
        let (protector, released) = fabric.roll(protectors.last().unwrap());
        let mut guest = GuestState::open(states.last().unwrap(), &released.ingress).unwrap();
        guest.header.age = Age::rolled(guest.header.age.generation + 1);
        let state = guest.seal(&released.egress, rng);
        assert!(opens(&state, &released.egress));
        assert!(
            !opens(&state, &released.ingress),
            "the old key opens generation {generation}"
        );
        // The first roll replaces what the owner wrote; from then on nothing grows.
        assert_eq!(
            protector.len(),
            protectors[0].len(),
            "the protector of generation {generation}"
        );
        assert_eq!(state.len(), states[0].len(), "the state of generation {generation}");
        protectors.push(protector);
        states.push(state);
        keys.push(released.egress);
    }

    let newest = states.last().unwrap();
    assert_eq!(
        GuestState::open(newest, keys.last().unwrap())
            .unwrap()
            .header
            .age
            .generation,
        1001
    );
    let opening: Vec<usize> = (0..keys.len()).filter(|at| opens(newest, &keys[*at])).collect();
    assert_eq!(opening, [GENERATIONS], "only the newest key opens the newest state");

    // The thief has one generation whole, and even gets it rolled once more: nothing newer opens.
    let (_, stolen) = fabric.roll(&protectors[THEFT]);
    assert!(
        opens(&states[THEFT], &stolen.ingress),
        "it is the key of what was stolen"
    );
    for (newer, state) in states.iter().enumerate().skip(THEFT + 1) {
        for key in [&stolen.ingress, &stolen.egress] {
            assert!(!opens(state, key), "what was stolen at {THEFT} opens {newer}");
        }
    }
    // And no key ever came twice.
    let distinct: std::collections::HashSet<&[u8; 32]> =
        keys.iter().map(|key| key.expose_transport_key().expose()).collect();
    assert_eq!(distinct.len(), GENERATIONS + 1);
}

#[test]
fn with_rsa_only_the_newest_key_opens_the_newest_of_a_thousand_generations() {
    let (now, rng) = (Clock::system().now(), &mut OsRandom);
    let owner = GuardianKeys::generate("Owner", now, rng).unwrap();
    a_thousand_generations(&owner, GuardianKeys::generate("HGS", now, rng).unwrap(), now);
}

#[test]
fn with_p256_only_the_newest_key_opens_the_newest_of_a_thousand_generations() {
    let (now, rng) = (Clock::system().now(), &mut OsRandom);
    let owner = GuardianKeys::generate_p256("Owner", now, rng).unwrap();
    a_thousand_generations(&owner, GuardianKeys::generate_p256("HGS", now, rng).unwrap(), now);
}
