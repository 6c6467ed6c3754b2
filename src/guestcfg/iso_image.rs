//! The NoCloud seed as a CD: ISO 9660 (ECMA-119) with Joliet names, as a reader without Joliet would cut ours to eight
//! letters. In: the seed's files. Out: the image, the same bytes for the same files on every machine and day. Made by hand: the
//! crate that could (hadris-iso) stamps the present time into every image.

use super::{GuestFile, Refusal};

const SECTOR: usize = 2048;
/// The system area; the volume descriptors come after it.
const SYSTEM_AREA: usize = 16;
/// Primary and Joliet descriptor and their end; two path tables of each; two root folders.
const FIRST_FILE: usize = SYSTEM_AREA + 3 + 4 + 2;
const LABEL: &str = "CIDATA";
/// The first moment of FAT stands for every time here too (ECMA-119 9.1.5).
const EPOCH: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];

/// One of the two trees that an image has: the same files under other names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Primary,
    Joliet,
}

impl Tree {
    /// Text that ends at `length` bytes, spaces behind it.
    fn text(self, text: &str, length: usize) -> Vec<u8> {
        let (mut bytes, space): (Vec<u8>, &[u8]) = match self {
            Self::Primary => (text.bytes().collect(), b" "),
            Self::Joliet => (ucs2(text), b"\0 "),
        };
        while bytes.len() + space.len() <= length {
            bytes.extend(space);
        }
        bytes.resize(length, 0);
        bytes
    }

    /// A file's name: eight capitals for readers of the plain standard, itself for all others.
    fn name(self, file: &GuestFile) -> Vec<u8> {
        match self {
            Self::Primary => {
                let capital = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
                let short: String = file.path.chars().map(capital).take(8).collect();
                format!("{short}.;1").into_bytes()
            }
            Self::Joliet => ucs2(&format!("{};1", file.path)),
        }
    }

    fn path_tables(self) -> (usize, usize) {
        let first = SYSTEM_AREA + 3 + if self == Self::Primary { 0 } else { 2 };
        (first, first + 1)
    }

    fn root(self) -> usize {
        SYSTEM_AREA + 3 + 4 + if self == Self::Primary { 0 } else { 1 }
    }
}

/// The image of `files` at its root.
pub(super) fn iso_image(files: &[GuestFile]) -> Result<Vec<u8>, Refusal> {
    let mut at = FIRST_FILE;
    let mut extents = Vec::new();
    for file in files {
        extents.push((file, at));
        at += file.bytes.len().div_ceil(SECTOR);
    }
    let too_large =
        |_| Refusal::SeedImage { size: at * SECTOR, reason: "an ISO 9660 image holds 4 GiB".into() };
    let sectors = u32::try_from(at).map_err(too_large)?;
    let mut image = vec![0; SYSTEM_AREA * SECTOR];
    image.extend(descriptor(Tree::Primary, sectors));
    image.extend(descriptor(Tree::Joliet, sectors));
    image.extend(sector([&[255][..], b"CD001\x01"].concat()));
    for tree in [Tree::Primary, Tree::Joliet] {
        let root = tree.root() as u32;
        image.extend(path_table(root.to_le_bytes(), 1u16.to_le_bytes()));
        image.extend(path_table(root.to_be_bytes(), 1u16.to_be_bytes()));
    }
    for tree in [Tree::Primary, Tree::Joliet] {
        image.extend(folder(tree, &extents)?);
    }
    for (file, _) in extents {
        image.extend(&file.bytes);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    Ok(image)
}

fn sector(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(SECTOR, 0);
    bytes
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A number in both byte orders (ECMA-119 7.3.3).
fn both(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn both_short(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

/// The length of a path table that has the root alone: its record of eight bytes, a name of one, a byte to be even.
const PATH_TABLE: u32 = 10;

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    sector([&[1, 0][..], &root, &parent, &[0, 0]].concat())
}

/// A volume descriptor (ECMA-119 8.4, 8.5; Joliet's is told by its escape sequence, UCS-2 level 3).
fn descriptor(tree: Tree, sectors: u32) -> Vec<u8> {
    let (kind, escape) = if tree == Tree::Primary { (1, "") } else { (2, "%/E") };
    let (little, big) = tree.path_tables();
    let mut bytes = vec![kind];
    bytes.extend(b"CD001\x01\0");
    bytes.extend(tree.text("LINUX", 32));
    bytes.extend(tree.text(LABEL, 32));
    bytes.extend([0; 8]);
    bytes.extend(both(sectors));
    bytes.extend(escape.bytes().chain(std::iter::repeat(0)).take(32));
    bytes.extend([both_short(1), both_short(1), both_short(SECTOR as u16)].concat());
    bytes.extend(both(PATH_TABLE));
    bytes.extend((little as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((big as u32).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record(tree.root(), SECTOR, true, &[0]));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        bytes.extend(tree.text("", length));
    }
    // No time of creation, modification, expiry or effect is told (8.4.26.1).
    for _ in 0..4 {
        bytes.extend(b"0000000000000000\0");
    }
    bytes.extend([1, 0]);
    sector(bytes)
}

/// The root folder: itself, its parent (itself too), then the files in the order of their names (ECMA-119 9.3).
fn folder(tree: Tree, extents: &[(&GuestFile, usize)]) -> Result<Vec<u8>, Refusal> {
    let mut records = vec![(vec![0], record(tree.root(), SECTOR, true, &[0]))];
    records.push((vec![1], record(tree.root(), SECTOR, true, &[1])));
    for &(file, at) in extents {
        let name = tree.name(file);
        let record = record(at, file.bytes.len(), false, &name);
        records.push((name, record));
    }
    records.sort();
    let bytes: Vec<u8> = records.into_iter().flat_map(|(_, record)| record).collect();
    if bytes.len() > SECTOR {
        return Err(Refusal::SeedImage { size: bytes.len(), reason: "too many files for one folder".into() });
    }
    Ok(sector(bytes))
}

/// A directory record (ECMA-119 9.1).
fn record(at: usize, length: usize, is_folder: bool, name: &[u8]) -> Vec<u8> {
    let padded = (33 + name.len()).next_multiple_of(2);
    let mut bytes = vec![padded as u8, 0];
    bytes.extend(both(at as u32));
    bytes.extend(both(length as u32));
    bytes.extend(EPOCH);
    bytes.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    bytes.extend(both_short(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    bytes.resize(padded, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_by_its_own_name_and_by_its_short_one() {
        let file =
            |path: &str, length| GuestFile { path: path.into(), mode: 0o644, bytes: vec![b'#'; length] };
        let files = [file("user-data", 0), file("meta-data", 5), file("network-config", 2049)];
        let image = iso_image(&files).unwrap();
        assert_eq!(image.len(), (FIRST_FILE + 3) * SECTOR);
        for tree in [Tree::Primary, Tree::Joliet] {
            let folder = &image[tree.root() * SECTOR..][..SECTOR];
            let mut names = Vec::new();
            let mut at = 0;
            while folder[at] != 0 {
                let record = &folder[at..][..usize::from(folder[at])];
                let name = record[33..][..usize::from(record[32])].to_vec();
                let start = u32::from_le_bytes(record[2..6].try_into().unwrap()) as usize * SECTOR;
                let length = u32::from_le_bytes(record[10..14].try_into().unwrap()) as usize;
                if let Some(file) = files.iter().find(|file| tree.name(file) == name) {
                    assert_eq!(image[start..start + length], file.bytes, "{}", file.path);
                }
                names.push(name);
                at += record.len();
            }
            assert!(names.is_sorted() && names.len() == 5, "{names:?}");
        }
    }
}
