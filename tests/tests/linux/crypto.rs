//! OpenSSL in Debian on the interpreter computes what OpenSSL computes here: by AES-NI, PCLMULQDQ, SHA, AVX2 and ADX, and by each
//! way that it takes where a processor has less.

use crate::boot::no_warnings;
use crate::guest::Debian;
use godwit_tests::harness::Scratch;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// What the processor of the guest must have, by the names in `/proc/cpuinfo`.
const FLAGS: &str = "adx aes avx avx2 bmi2 fma pclmulqdq sha_ni ssse3";

/// The features that OpenSSL is told to leave alone (OPENSSL_ia32cap(3)): bits of CPUID leaf 1, EDX and ECX, then of leaf 7, EBX.
const WAYS: [(&str, &str); 5] = [
    ("all", ""),
    ("avx2", ":~0x20000000"),
    ("avx", ":~0x20080120"),
    ("ssse3", "~0x1200000200000000:~0x20080120"),
    ("integer", "~0x1200020207000000:~0x20080120"),
];

/// Prints a line for each algorithm: its name and what comes of 300,007 bytes.
const SCRIPT: &str = r#"
cd "$(mktemp -d)" || exit
printf '%s\n' "$RSA" >rsa; printf '%s\n' "$ED25519" >ed25519; printf '%s\n' "$X25519" >x25519
openssl pkey -in x25519 -pubout -out x25519.pub
openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 0 -in /dev/zero 2>/dev/null | head -c 300007 >input
sum() { sha256sum | cut -c 1-32; }
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
iv=f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff
for hash in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
    echo "$hash $(openssl dgst -$hash -r input | cut -c 1-32)"
done
for cipher in aes-128-cbc aes-256-ecb aes-192-ctr aes-256-cfb chacha20 camellia-256-cbc; do
    k=$key; case $cipher in *128*) k=$(printf %.32s $key) ;; *192*) k=$(printf %.48s $key) ;; esac
    v="-iv $iv"; case $cipher in *ecb) v= ;; esac
    openssl enc -$cipher -K "$k" $v -in input -out coded
    openssl enc -d -$cipher -K "$k" $v -in coded | cmp - input && echo "$cipher $(sum <coded)"
done
echo "gmac $(openssl mac -cipher AES-256-GCM -macopt hexkey:$key -macopt hexiv:000102030405060708090a0b -in input GMAC)"
echo "cmac $(openssl mac -cipher AES-128-CBC -macopt hexkey:${key%????????????????????????????????} -in input CMAC)"
echo "poly1305 $(openssl mac -macopt hexkey:$key -in input POLY1305)"
echo "pbkdf2 $(openssl kdf -keylen 32 -kdfopt digest:SHA512 -kdfopt pass:godwit -kdfopt hexsalt:$iv -kdfopt iter:2000 PBKDF2)"
echo "scrypt $(openssl kdf -keylen 32 -kdfopt pass:godwit -kdfopt hexsalt:$iv -kdfopt n:1024 -kdfopt r:8 -kdfopt p:1 SCRYPT)"
echo "rsa $(openssl dgst -sha256 -sign rsa input | sum)"
echo "ed25519 $(openssl pkeyutl -sign -rawin -inkey ed25519 -in ed25519 | sum)"
echo "x25519 $(openssl pkeyutl -derive -inkey x25519 -peerkey x25519.pub | sum)"
openssl ecparam -name prime256v1 -genkey -noout -out p256
openssl dgst -sha256 -sign p256 -out signature input
echo "p256 $(openssl dgst -sha256 -prverify p256 -signature signature input)"
"#;

/// The script's lines for one way, as it says them here.
fn here(script: &Path, way: &str) -> String {
    let run = Command::new("bash").arg(script).env("OPENSSL_ia32cap", way).output().expect("bash is here");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// A new private key in PEM.
fn key(args: &[&str]) -> Option<String> {
    let made = Command::new("openssl").arg("genpkey").args(args).output().ok()?;
    made.status.success().then(|| String::from_utf8(made.stdout).unwrap().trim().to_owned())
}

#[test]
fn openssl_computes_in_debian_what_it_computes_here() {
    let name = "openssl_computes_in_debian_what_it_computes_here";
    let debian = match Debian::find() {
        Ok(debian) => debian,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
    let (rsa, ed25519, x25519) =
        match (key(&rsa), key(&["-algorithm", "ED25519"]), key(&["-algorithm", "X25519"])) {
            (Some(rsa), Some(ed25519), Some(x25519)) => (rsa, ed25519, x25519),
            _ => {
                return println!(
                    "SKIPPED {name}: no openssl here that makes keys (scripts/setup --rootfs installs it)"
                );
            }
        };
    let scratch = Scratch::new(name);
    let sums = format!("RSA='{rsa}'\nED25519='{ed25519}'\nX25519='{x25519}'\n{SCRIPT}");
    let ours = scratch.path("sums.sh");
    std::fs::write(&ours, &sums).unwrap();
    let expected = here(&ours, "");

    let mut script =
        "command -v openssl >/dev/null || { echo 'CHECK openssl none'; exit; }; echo 'CHECK openssl here'\n"
            .to_owned();
    script += &format!("cat >/run/sums <<'SUMS'\n{sums}\nSUMS\n");
    script += "echo \"CHECK flags $(sed -n 's/^flags.*: //p' /proc/cpuinfo)\"\n";
    for (way, mask) in WAYS {
        script += &format!(
            "OPENSSL_ia32cap='{mask}' bash /run/sums 2>&1 | sed 's/^/CHECK {way}-/'\necho 'CHECK {way} done'\n"
        );
    }
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 256, "cpu_model": "host"});
    let config = debian.config(&scratch, &script, &[], 256, json!({"machine-config": machine}));
    let mut vm = debian.start(&scratch, "api.sock", Some(&config));
    if vm.hear("openssl") == "none" {
        return println!(
            "SKIPPED {name}: the root file system is an old one without openssl (scripts/setup --rootfs)"
        );
    }
    for (way, mask) in WAYS {
        assert_eq!(vm.hear(way), "done");
        // Here too it takes each way that this processor has.
        assert_eq!(here(&ours, mask), expected, "here, by {way}");
        for line in expected.lines() {
            let (name, sum) = line.split_once(' ').unwrap();
            assert_eq!(vm.said(&format!("{way}-{name}")).as_deref(), Some(sum), "{name} by {way}");
        }
    }
    let has = vm.hear("flags");
    for flag in FLAGS.split(' ') {
        assert!(has.split(' ').any(|f| f == flag), "the guest's processor has no {flag}: {has}");
    }
    assert_eq!(expected.lines().count(), 21, "{expected}");
    assert_eq!(vm.process.wait_exit(), Some(0), "{}", vm.process.err());
    no_warnings(&vm.process.lines());
    println!("{name}: {} algorithms by {} ways", expected.lines().count(), WAYS.len());
}
