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

// AdaptSaved writes into the directory to, which is there and empty, what was
// saved into the directory from, as another machine's: the one of spec, which
// has a network address and copies of the disks of its own. From is left as it
// is. That the disks hold what they held when the machine was saved is the
// caller's to see to; all else that a guest may have come to rely on is
// compared.
//
// Errors: errs.Conflict with code saved_unusable when something differs; to is
// empty then.
func AdaptSaved(from, to string, spec Spec) error {
	s, err := ReadSaved(from)
	if err != nil {
		return err
	}
	own, err := s.adapt(spec)
	if err != nil {
		return err
	}
	if err := bringDevices(from, to); err != nil {
		return fmt.Errorf("cannot bring what was saved of the devices: %w", err)
	}
	if err := own.Write(to); err != nil {
		return errors.Join(err, RemoveSaved(to))
	}
	return nil
}

// adapt returns the manifest of the same machine with spec's address and disks.
func (s Saved) adapt(spec Spec) (Saved, error) {
	if err := s.checkSize(spec); err != nil {
		return Saved{}, err
	}
	if (s.MAC == "") != (spec.mac() == "") {
		return Saved{}, Unusable("it had a network device, or has one now, but not both")
	}
	if len(s.Disks) != len(spec.Disks) {
		return Saved{}, Unusable("it had %d disks and has %d now", len(s.Disks), len(spec.Disks))
	}
	own := s
	own.MAC, own.Disks = spec.mac(), slices.Clone(s.Disks)
	for i, d := range spec.Disks {
		now, err := describe(d)
		if err != nil {
			return Saved{}, Unusable("its disk %s cannot be read", d.Serial).WithCause(err)
		}
		was := s.Disks[i]
		if now.Serial != was.Serial || now.ReadOnly != was.ReadOnly || now.Size != was.Size {
			return Saved{}, Unusable("its disk %s (read-only: %t, %d bytes) is the disk %s (read-only: %t, %d bytes) now",
				was.Serial, was.ReadOnly, was.Size, now.Serial, now.ReadOnly, now.Size)
		}
		own.Disks[i].ModTime = now.ModTime
	}
	return own, nil
}

// checkSize compares what makes a machine another one for its guest.
func (s Saved) checkSize(spec Spec) error {
	switch {
	case s.VCPUs != spec.VCPUs:
		return Unusable("the number of CPUs was %d and is %d now", s.VCPUs, spec.VCPUs)
	case s.MemMiB != spec.MemMiB:
		return Unusable("the size of the memory in MiB was %d and is %d now", s.MemMiB, spec.MemMiB)
	case !maps.Equal(s.Origin, spec.Origin):
		return Unusable("its kernel or root file system is another one now")
	}
	return nil
}

// bringDevices gives the devices another name, since nobody changes them; where
// that cannot be had, to another file system for one, they are copied.
func bringDevices(from, to string) error {
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
