package vmm

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// AdaptSaved copies the saved machine in the directory from into the empty
// directory to, and changes the copy to fit the machine of spec, which has another
// MAC and copies of the disks. The caller makes sure that the disks have their
// content of the moment of the save; AdaptSaved checks everything else that a guest
// relies on.
//
// Errors: errs.Conflict with code saved_unusable if something differs; then to is
// empty.
func AdaptSaved(from, to string, spec Spec) error {
	s, err := ReadSaved(from)
	if err != nil {
		return err
	}
	adapted, err := s.adapt(spec)
	if err != nil {
		return err
	}
	if err := copyDevices(from, to); err != nil {
		return fmt.Errorf("cannot copy the saved devices: %w", err)
	}
	if err := adapted.Write(to); err != nil {
		return errors.Join(err, RemoveSaved(to))
	}
	return nil
}

// adapt returns the manifest with the MAC and the disks of spec.
func (s Saved) adapt(spec Spec) (Saved, error) {
	if err := s.checkShape(spec); err != nil {
		return Saved{}, err
	}
	if (s.MAC == "") != (spec.mac() == "") {
		return Saved{}, Unusable("one of the two VMs has a network device and the other has none")
	}
	if len(s.Disks) != len(spec.Disks) {
		return Saved{}, Unusable("it had %d disks and has %d now", len(s.Disks), len(spec.Disks))
	}
	adapted := s
	adapted.MAC, adapted.Disks = spec.mac(), slices.Clone(s.Disks)
	for i, d := range spec.Disks {
		now, err := statDisk(d)
		if err != nil {
			return Saved{}, Unusable("its disk %s cannot be read", d.Serial).WithCause(err)
		}
		was := s.Disks[i]
		if now.Serial != was.Serial || now.ReadOnly != was.ReadOnly || now.Size != was.Size {
			return Saved{}, Unusable("its disk %s (read-only: %t, %d bytes) is the disk %s (read-only: %t, %d bytes) now",
				was.Serial, was.ReadOnly, was.Size, now.Serial, now.ReadOnly, now.Size)
		}
		adapted.Disks[i].ModTime = now.ModTime
	}
	return adapted, nil
}

// checkShape compares CPUs, memory and origin.
func (s Saved) checkShape(spec Spec) error {
	switch {
	case s.VCPUs != spec.VCPUs:
		return Unusable("the number of CPUs was %d and is %d now", s.VCPUs, spec.VCPUs)
	case s.MemMiB != spec.MemMiB:
		return Unusable("the size of the memory in MiB was %d and is %d now", s.MemMiB, spec.MemMiB)
	case !maps.Equal(s.Origin, spec.Origin):
		return Unusable("its kernel or root file system was replaced")
	}
	return nil
}

// copyDevices makes a hard link, since the file never changes. Where it cannot, for
// example because to is on another file system, it copies the content.
func copyDevices(from, to string) error {
	from, to = filepath.Join(from, SavedDevices), filepath.Join(to, SavedDevices)
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, maxDevices))
	if err := errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}
