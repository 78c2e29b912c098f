package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// machineFlags are the flags that describe a machine; VMs and templates share
// them.
type machineFlags struct {
	image    string
	vcpus    int
	memory   string
	disk     string
	bootArgs string
	noNet    bool
	userData string
	labels   []string
	sshKeys  []string
	limits   limitFlags
}

// machine is what was given; nil fields were not.
type machine struct {
	imageID                string
	vcpus, memMiB, diskMiB *int
	bootArgs, userData     *string
	network                *bool
	labels                 map[string]string
	sshKeys                []string
	limits                 *api.RateLimits
}

func (f *machineFlags) add(c *cli, cmd *cobra.Command) {
	f.addShape(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.image, "image", "", "`image` to start from")
	flags.StringVar(&f.userData, "user-data", "", "cloud-init user data from `file`, or - for stdin")
	flags.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to find it by (repeatable)")
	flags.StringArrayVar(&f.sshKeys, "ssh-key", nil, "public key `file` for SSH, or default for ~/.ssh/id_*.pub (repeatable)")
	f.limits.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("image", c.completeImages)
}

// addShape adds those that a guest boots with.
func (f *machineFlags) addShape(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.vcpus, "vcpus", 0, "number of virtual CPUs (also --cpus)")
	flags.IntVar(&f.vcpus, "cpus", 0, "")
	_ = flags.MarkHidden("cpus")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory `size`: MiB, or as 512m or 1g")
	flags.StringVar(&f.disk, "disk", "", "`size` of the VM's own disk: MiB, or as 512m or 10g")
	flags.StringVar(&f.bootArgs, "boot-args", "", "kernel boot `arguments`")
	flags.BoolVar(&f.noNet, "no-network", false, "no network and no SSH port")
}

func (f *machineFlags) read(ctx context.Context, c *cli, cmd *cobra.Command, server *client.Client) (machine, error) {
	var m machine
	var err error
	given := cmd.Flags().Changed
	if given("vcpus") || given("cpus") {
		m.vcpus = &f.vcpus
	}
	if given("boot-args") {
		m.bootArgs = &f.bootArgs
	}
	if given("no-network") {
		network := !f.noNet
		m.network = &network
	}
	if m.memMiB, err = size("--memory", f.memory, given("memory")); err != nil {
		return m, err
	}
	if m.diskMiB, err = size("--disk", f.disk, given("disk")); err != nil {
		return m, err
	}
	if m.labels, err = readLabels(f.labels); err != nil {
		return m, err
	}
	if m.sshKeys, err = c.readSSHKeys(f.sshKeys); err != nil {
		return m, err
	}
	if m.limits, err = f.limits.read(cmd); err != nil {
		return m, err
	}
	if given("user-data") {
		if m.userData, err = c.readUserData(f.userData); err != nil {
			return m, err
		}
	}
	if f.image != "" {
		image, err := findImage(ctx, server, f.image)
		if err != nil {
			return m, err
		}
		m.imageID = image.ID
	}
	return m, nil
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,9})(?:([mgt])(?:i?b)?)?$`)

var sizeUnits = map[string]int{"": 1, "m": 1, "g": 1 << 10, "t": 1 << 20}

// size reads a size in MiB, or with a unit; nil when it was not given.
func size(flag, text string, given bool) (*int, error) {
	if !given {
		return nil, nil
	}
	parts := sizeForm.FindStringSubmatch(strings.ToLower(text))
	if parts == nil {
		return nil, fmt.Errorf("%s takes a whole number of MiB, or one with m or g, as 512m or 1g, not %q", flag, text)
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	n *= sizeUnits[parts[2]]
	return &n, nil
}

func readLabels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--label takes KEY=VALUE, not %q", pair)
		}
		m[key] = value
	}
	return m, nil
}

// maxInput bounds what is read of a file; the server's own limits are lower.
const maxInput = 16 << 20 // bytes

// readInput reads a file, or stdin for a hyphen.
func (c *cli) readInput(path string) ([]byte, error) {
	in := c.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxInput {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxInput>>20)
	}
	return text, nil
}

func (c *cli) readUserData(path string) (*string, error) {
	b, err := c.readInput(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the user data: %w", err)
	}
	text := string(b)
	return &text, nil
}

// readSSHKeys reads public keys from the files named.
func (c *cli) readSSHKeys(files []string) ([]string, error) {
	var keys []string
	for _, file := range files {
		paths := []string{file}
		if file == "default" {
			if paths = c.ownSSHKeys(); len(paths) == 0 {
				return nil, hint(fmt.Errorf("there is no ~/.ssh/id_*.pub"), "ssh-keygen -t ed25519")
			}
		}
		for _, path := range paths {
			found, err := c.publicKeys(path)
			if err != nil {
				return nil, err
			}
			keys = append(keys, found...)
		}
	}
	return keys, nil
}

// ownSSHKeys lists the files of the user's own public keys.
func (c *cli) ownSSHKeys() []string {
	home := c.env("HOME")
	if home == "" {
		return nil
	}
	paths, _ := filepath.Glob(filepath.Join(home, ".ssh", "id_*.pub"))
	return paths
}

func (c *cli) publicKeys(path string) ([]string, error) {
	text, err := c.readInput(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the SSH key: %w", err)
	}
	if strings.Contains(string(text), "PRIVATE KEY-----") {
		return nil, hint(fmt.Errorf("%s is a private key; it is not sent", path), "give the public one: --ssh-key %s.pub", path)
	}
	var keys []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no public key", path)
	}
	return keys, nil
}
