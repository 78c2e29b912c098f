package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vm"
)

// Seed writes the VM's NoCloud disk, or replaces it: an ISO 9660 volume named
// cidata, as cloud-init's NoCloud data source requires.
func (f *Files) Seed(_ context.Context, v vm.VM) error {
	files, err := seedFiles(v)
	if err != nil {
		return err
	}
	path := filepath.Join(f.Dir(v.ID), seedName)
	tmp := path + ".new"
	if err := writeISO(tmp, files); err != nil {
		return errors.Join(space.Full(err), ignoreMissing(os.Remove(tmp)))
	}
	return os.Rename(tmp, path)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// seedFiles returns the seed's content, with the user data byte for byte.
func seedFiles(v vm.VM) (map[string][]byte, error) {
	// Values in meta-data are merged with the user's own configuration, which would
	// replace those in vendor data.
	meta, err := yaml.Marshal(struct {
		InstanceID string   `yaml:"instance-id"`
		Hostname   string   `yaml:"local-hostname"`
		PublicKeys []string `yaml:"public-keys,omitempty"`
	}{v.InstanceID(), v.Hostname(), v.SSHKeys})
	if err != nil {
		return nil, fmt.Errorf("cannot write meta-data: %w", err)
	}
	network, err := yaml.Marshal(networkConfig(v))
	if err != nil {
		return nil, fmt.Errorf("cannot write network-config: %w", err)
	}
	user := []byte(v.UserData)
	if len(user) == 0 {
		user = []byte("#cloud-config\n{}\n")
	}
	files := map[string][]byte{"meta-data": meta, "network-config": network, "user-data": user}
	if v.Boot.DiskMode != image.DiskCopy {
		files["vendor-data"] = []byte(overlayConfig)
	}
	return files, nil
}

// overlayConfig is vendor data, which the user data can override: the root is an overlay,
// and cloud-init would fail to resize that. Version 23.4 and later count it as an error.
const overlayConfig = "#cloud-config\ngrowpart: {mode: \"off\"}\nresize_rootfs: false\n"

// networkConfig is cloud-init's network configuration, version 2: the NIC with the
// VM's MAC is called eth0 and gets its address by DHCP.
func networkConfig(v vm.VM) any {
	type match struct {
		MAC string `yaml:"macaddress"`
	}
	type ethernet struct {
		Match   match  `yaml:"match"`
		SetName string `yaml:"set-name"`
		DHCP4   bool   `yaml:"dhcp4"`
		DHCP6   bool   `yaml:"dhcp6"`
	}
	ethernets := map[string]ethernet{}
	if v.EnableNetwork {
		ethernets["eth0"] = ethernet{Match: match{MAC: v.Lease.MAC.String()}, SetName: "eth0", DHCP4: true}
	}
	return struct {
		Version   int                 `yaml:"version"`
		Ethernets map[string]ethernet `yaml:"ethernets"`
	}{2, ethernets}
}

// seedSize is the size of every seed in bytes: the guest of a clone knows the size
// of the original's seed, and then reads the clone's. Holes take no space.
// isoStructures is about the size of the volume's own structures in bytes.
const (
	seedSize      = 4 << 20
	isoStructures = 64 << 10
)

// reserve allocates a file's blocks in advance: the library that writes it hides
// which error a full disk is.
func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func writeISO(path string, files map[string][]byte) (err error) {
	size := int64(isoStructures)
	for _, content := range files {
		size += int64(len(content)+2047) &^ 2047
	}
	if size > seedSize {
		return fmt.Errorf("cannot make the seed disk: it would have %d bytes, more than %d", size, seedSize)
	}
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := reserve(out, size); err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	workspace, err := os.MkdirTemp(filepath.Dir(path), ".seed-") // 0700: for a moment it contains the user's secrets
	if err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(workspace)) }()
	volume, err := iso9660.Create(file.New(out, false), seedSize, 0, 2048, workspace)
	if err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	for name, content := range files {
		f, err := volume.OpenFile(name, os.O_CREATE|os.O_RDWR)
		if err == nil {
			_, err = f.Write(content)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("cannot write %s to the seed disk: %w", name, err)
		}
	}
	err = volume.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "cidata"})
	if err != nil {
		return fmt.Errorf("cannot finish the seed disk: %w", err)
	}
	return out.Truncate(seedSize)
}
