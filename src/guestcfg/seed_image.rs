//! The NoCloud seed as a drive. In: the seed's files. Out: the bytes of a FAT file system labelled CIDATA, the same for
//! the same files on every machine and day.

use std::io::{self, Cursor, Write as _};

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume,
};

use super::cloud_init::fnv1a;
use super::{GuestFile, Refusal};

/// FAT's first moment stands for every time in the image.
#[derive(Debug)]
struct Epoch;

const EPOCH: Date = Date { year: 1980, month: 1, day: 1 };

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        EPOCH
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: EPOCH, time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

static AT_EPOCH: Epoch = Epoch;

const CLUSTER: usize = 1024;

/// The image of `files` at its root; a few tens of KiB more than they are.
pub(super) fn seed_image(files: &[GuestFile]) -> Result<Vec<u8>, Refusal> {
    let content: usize = files.iter().map(|file| file.bytes.len().next_multiple_of(CLUSTER)).sum();
    // Boot sector, two FATs and the root folder take up to 24 KiB of a volume of 1 MiB.
    let size = (content + content / 128 + 64 * 1024).next_multiple_of(32 * 1024);
    filled(files, size).map_err(|error| Refusal::SeedImage { size, reason: error.to_string() })
}

fn filled(files: &[GuestFile], size: usize) -> io::Result<Vec<u8>> {
    let mut image = vec![0; size];
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(CLUSTER as u32)
        .max_root_dir_entries(64)
        .volume_id(volume_id(files))
        .volume_label(*b"CIDATA     ");
    format_volume(Cursor::new(image.as_mut_slice()), format)?;
    let volume =
        FileSystem::new(Cursor::new(image.as_mut_slice()), FsOptions::new().time_provider(&AT_EPOCH))?;
    for file in files {
        volume.root_dir().create_file(&file.path)?.write_all(&file.bytes)?;
    }
    volume.unmount()?;
    Ok(image)
}

/// From the content, so that two seeds differ for whoever caches by volume id, and one seed never does.
fn volume_id(files: &[GuestFile]) -> u32 {
    let hash = files.iter().fold(0, |hash: u64, file| hash.rotate_left(1) ^ fnv1a(&file.bytes));
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::guestcfg::fixtures::guest;
    use crate::guestcfg::{Form, NetworkConfigVersion, Options, cloud_init};

    fn made(form: Form, user_data: Option<&[u8]>) -> Vec<GuestFile> {
        let options = Options { user_data, ..Options::default() };
        cloud_init(&guest(), form, NetworkConfigVersion::V2, &options).unwrap().files
    }

    #[test]
    fn an_image_holds_the_files_of_the_seed_under_the_label_cidata() {
        let large = vec![b'#'; 1024 * 1024];
        for user_data in [None, Some(&b""[..]), Some(&large[..700 * 1024]), Some(&large)] {
            let mut image = made(Form::SeedImage, user_data).remove(0).bytes;
            let volume = FileSystem::new(Cursor::new(image.as_mut_slice()), FsOptions::new()).unwrap();
            assert_eq!(volume.volume_label(), "CIDATA");
            assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
            let files = made(Form::NocloudDir, user_data);
            assert_eq!(volume.root_dir().iter().count(), files.len());
            for file in files {
                let mut bytes = Vec::new();
                volume.root_dir().open_file(&file.path).unwrap().read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, file.bytes, "{}", file.path);
            }
        }
    }

    #[test]
    fn an_image_is_the_same_byte_for_byte() {
        let image = made(Form::SeedImage, None).remove(0).bytes;
        assert_eq!(image, made(Form::SeedImage, None).remove(0).bytes);
        assert_eq!(format!("{:016x}", fnv1a(&image)), "a5b6ac41f7f4e45f", "stable over machines and days");
        assert_ne!(image, made(Form::SeedImage, Some(b"#cloud-config\n")).remove(0).bytes);
    }
}
