package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/hatchvm/hatch/internal/vm"
)

// Seed writes the VM's NoCloud disk anew: an ISO 9660 volume named cidata, as
// cloud-init's documentation of the NoCloud data source asks for.
func (f *Files) Seed(_ context.Context, v vm.VM) error {
	files, err := seedFiles(v)
	if err != nil {
		return err
	}
	path := filepath.Join(f.Dir(v.ID), seedName)
	tmp := path + ".new"
	if err := writeISO(tmp, files); err != nil {
		return errors.Join(full(err), ignoreMissing(os.Remove(tmp)))
	}
	return os.Rename(tmp, path)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// seedFiles returns the seed's content. The user's own text goes in byte for byte.
func seedFiles(v vm.VM) (map[string][]byte, error) {
	meta, err := yaml.Marshal(metaData(v))
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
	return map[string][]byte{"meta-data": meta, "network-config": network, "user-data": user}, nil
}

// metaData is what Hatch itself adds. Keys that are in it are there beside those
// of the user's own configuration, which would displace any in vendor data.
func metaData(v vm.VM) any {
	return struct {
		InstanceID string   `yaml:"instance-id"`
		Hostname   string   `yaml:"local-hostname"`
		PublicKeys []string `yaml:"public-keys,omitempty"`
	}{v.InstanceID(), v.Hostname(), v.SSHKeys}
}

// networkConfig is cloud-init's network configuration, version 2: the one NIC
// is found by its MAC, called eth0, and asks hatchd's DHCP for its address.
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

// seedSize is the size of every seed, whatever is in it: a copied guest goes on
// with the size that it has seen, and then reads a seed of its own. What is not
// written takes no room. isoStructures is about what the volume's own structures
// take. Both in bytes.
const (
	seedSize      = 4 << 20
	isoStructures = 64 << 10
)

// reserve takes the room for a file in advance: the library that writes it
// does not tell a full disk from other faults.
func reserve(file *os.File, size int64) error {
	err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
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
	workspace, err := os.MkdirTemp(filepath.Dir(path), ".seed-") // 0700: it holds the user's secrets for a moment
	if err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(workspace)) }()
	volume, err := iso9660.Create(file.New(out, false), seedSize, 0, 2048, workspace)
	if err != nil {
		return fmt.Errorf("cannot make the seed disk: %w", err)
	}
	for name, content := range files {
		if err := addFile(volume, name, content); err != nil {
			return fmt.Errorf("cannot write %s to the seed disk: %w", name, err)
		}
	}
	err = volume.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "cidata"})
	if err != nil {
		return fmt.Errorf("cannot finish the seed disk: %w", err)
	}
	return out.Truncate(seedSize)
}

func addFile(volume *iso9660.FileSystem, name string, content []byte) (err error) {
	f, err := volume.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}
