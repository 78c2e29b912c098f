package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// machineFlag is a flag that describes a machine.
type machineFlag struct {
	name, short string
	zero        any // of the flag's type: int, int64, bool, string, or []string for one that can be repeated
	usage       string
	set         func(g given, spec *api.MachineSpec) error // called when the flag was given
}

// shapeFlags describe the shape of a VM, which a warm guest must have, too.
var shapeFlags = []machineFlag{
	{"vcpus", "", 0, "number of virtual CPUs, up to those of the host (also --cpus)", func(g given, spec *api.MachineSpec) error {
		n, err := strconv.Atoi(g.text())
		spec.VCPUCount = &n
		return err
	}},
	{"memory", "m", "", "memory `size`, 64m or more: MiB, or as 512m or 1g", func(g given, spec *api.MachineSpec) (err error) {
		spec.MemMiB, err = size(g.flag.Name, g.text())
		return err
	}},
	{"disk", "", "", "`size` of the VM's own disk, 64m or more: MiB, or as 512m or 10g", func(g given, spec *api.MachineSpec) (err error) {
		spec.DiskMiB, err = size(g.flag.Name, g.text())
		return err
	}},
	{"boot-args", "", "", "kernel boot `arguments`, up to 1,536 bytes", func(g given, spec *api.MachineSpec) error {
		spec.BootArgs = new(g.text())
		return nil
	}},
	{"no-network", "", false, "no network and no SSH port", func(g given, spec *api.MachineSpec) error {
		spec.EnableNetwork = new(g.text() != "true")
		return nil
	}},
}

// machineFlags are all flags that VMs and templates share.
var machineFlags = append(slices.Clone(shapeFlags),
	machineFlag{"description", "", "", "what it is for, up to 1,024 bytes", func(g given, spec *api.MachineSpec) error {
		spec.Description = new(g.text())
		return nil
	}},
	machineFlag{"hostname", "", "", "the guest's `hostname` (default: the VM's name)", func(g given, spec *api.MachineSpec) error {
		spec.Hostname = new(g.text())
		return nil
	}},
	machineFlag{"user-data", "", "", "cloud-init user data from `file`, or - for stdin, up to 1 MiB", func(g given, spec *api.MachineSpec) (err error) {
		spec.UserData, err = g.streams.readUserData(g.text())
		return err
	}},
	machineFlag{"label", "", []string(nil), "set label `KEY=VALUE` (repeatable)", func(g given, spec *api.MachineSpec) (err error) {
		spec.Labels, err = readLabels(g.texts())
		return err
	}},
	machineFlag{"ssh-key", "", []string(nil), "public key `file` for SSH, or default for ~/.ssh/id_*.pub (repeatable)", func(g given, spec *api.MachineSpec) (err error) {
		spec.SSHAuthorizedKeys, err = g.streams.readSSHKeys(g.texts())
		return err
	}},
	machineFlag{"disk-rate", "", "", "`bytes` per second to and from each disk, 64k or more, as 512k or 20m; 0 for no limit", func(g given, spec *api.MachineSpec) (err error) {
		diskLimit(spec).BytesPerSecond, err = rate(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"disk-ops", "", int64(0), "reads and writes per second of each disk, 10 or more; 0 for no limit", func(g given, spec *api.MachineSpec) (err error) {
		diskLimit(spec).OpsPerSecond, err = strconv.ParseInt(g.text(), 10, 64)
		return err
	}},
	machineFlag{"net-in-rate", "", "", "`bytes` per second that the guest receives, 64k or more, as 512k or 20m; 0 for no limit", func(g given, spec *api.MachineSpec) (err error) {
		rateLimits(spec).NetworkIn, err = networkLimit(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"net-out-rate", "", "", "`bytes` per second that the guest sends, 64k or more, as 512k or 20m; 0 for no limit", func(g given, spec *api.MachineSpec) (err error) {
		rateLimits(spec).NetworkOut, err = networkLimit(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"route", "", []string(nil), "host name that leads to a port of the guest, as `[NAME=]PORT` (repeatable)", func(g given, spec *api.MachineSpec) error {
		for _, text := range g.texts() {
			r, err := readRoute(text)
			if err != nil {
				return err
			}
			spec.Routes = append(spec.Routes, r)
		}
		return nil
	}},
	machineFlag{"idle", "", "", "put it to sleep after this `time` without activity, as 10m; 0 for never", func(g given, spec *api.MachineSpec) (err error) {
		idlePolicy(spec).TimeoutSeconds, err = wholeSeconds(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"idle-action", "", "", "what happens to it when it is idle: sleep, stop or none", func(g given, spec *api.MachineSpec) error {
		idlePolicy(spec).Action = g.text()
		return nil
	}},
	machineFlag{"idle-cpu", "", 0, "`percent` of one CPU, used by the guest on average, from which it is not idle; 0 for never", func(g given, spec *api.MachineSpec) error {
		n, err := strconv.Atoi(g.text())
		idlePolicy(spec).CPUPercent = &n
		return err
	}},
	machineFlag{"idle-network", "", "", "`bytes` to and from the guest, within the time of --idle, from which it is not idle, as 512k or 20m; 0 for never", func(g given, spec *api.MachineSpec) error {
		n, err := rate(g.flag.Name, g.text())
		idlePolicy(spec).NetworkBytes = &n
		return err
	}},
	machineFlag{"ttl", "", "", "stop it this `time` after its creation, as 2h; 0 for never", func(g given, spec *api.MachineSpec) (err error) {
		spec.TTLSeconds, err = wholeSeconds(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"expire-action", "", "", "what happens to it then: stop, sleep or delete", func(g given, spec *api.MachineSpec) error {
		spec.ExpireAction = g.text()
		return nil
	}},
	machineFlag{"implicit-routes", "", "", "whether PORT-VM leads to its ports, for callers with a key or a signed link: on or off (default: as the server says)", func(g given, spec *api.MachineSpec) (err error) {
		spec.ImplicitRoutes, err = onOff(g.flag.Name, g.text())
		return err
	}},
	machineFlag{"publish", "p", []string(nil), "publish `PORT` of the guest on the server: [HOST:]GUEST, as 80 or 8080:80 (repeatable)", func(g given, spec *api.MachineSpec) error {
		from, err := g.cmd.Flags().GetStringArray("publish-from")
		if err == nil {
			spec.Ports, err = readPorts(g.flag.Name, g.texts(), from)
		}
		return err
	}},
	machineFlag{"publish-from", "", []string(nil), "`network` that may connect to the ports of --publish, as 192.0.2.0/24 (repeatable; default: the server's HATCH_PORT_ALLOWED_CIDR)", func(g given, _ *api.MachineSpec) error {
		if !g.cmd.Flags().Changed("publish") {
			return usage(g.cmd, "--publish-from needs --publish")
		}
		return nil
	}},
	// The last one: it sends a request, and the values of all others are checked before.
	machineFlag{"image", "", "", "`image` to start from", func(g given, spec *api.MachineSpec) (err error) {
		spec.ImageID, err = g.image()
		return err
	}},
)

func addMachineFlags(conn *connection, cmd *cobra.Command, table []machineFlag) {
	flags := cmd.Flags()
	for _, f := range table {
		switch zero := f.zero.(type) {
		case int:
			flags.IntP(f.name, f.short, zero, f.usage)
		case int64:
			flags.Int64P(f.name, f.short, zero, f.usage)
		case bool:
			flags.BoolP(f.name, f.short, zero, f.usage)
		case string:
			flags.StringP(f.name, f.short, zero, f.usage)
		case []string:
			flags.StringArrayP(f.name, f.short, zero, f.usage)
		}
	}
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "cpus" {
			name = "vcpus"
		}
		return pflag.NormalizedName(name)
	})
	if flags.Lookup("image") != nil {
		_ = cmd.RegisterFlagCompletionFunc("image", imageKind.complete(conn))
	}
}

// readMachine reads the machine flags that were given; other fields stay nil.
func readMachine(s streams, cmd *cobra.Command, server *client.Client) (api.MachineSpec, error) {
	var spec api.MachineSpec
	for _, f := range machineFlags {
		if !cmd.Flags().Changed(f.name) {
			continue
		}
		if err := f.set(given{s, cmd, server, cmd.Flags().Lookup(f.name)}, &spec); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// given is a flag that was given, and how to look up what it refers to.
type given struct {
	streams streams
	cmd     *cobra.Command
	server  *client.Client
	flag    *pflag.Flag
}

func (g given) text() string { return g.flag.Value.String() }

func (g given) texts() []string { return g.flag.Value.(pflag.SliceValue).GetSlice() }

func (g given) image() (id string, err error) {
	if g.text() == "" {
		return "", nil
	}
	image, err := imageKind.find(g.cmd.Context(), g.server, g.text())
	return image.ID, err
}

// onOff reads a choice.
func onOff(flag, text string) (*bool, error) {
	if text != "on" && text != "off" {
		return nil, usageError{fmt.Errorf("--%s takes on or off, not %q", flag, text)}
	}
	return new(text == "on"), nil
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,9})(?:([mgt])(?:i?b)?)?$`)

var sizeUnits = map[string]int{"": 1, "m": 1, "g": 1 << 10, "t": 1 << 20}

// size reads a size in MiB, or with a unit.
func size(flag, text string) (*int, error) {
	parts := sizeForm.FindStringSubmatch(strings.ToLower(text))
	if parts == nil {
		return nil, usageError{fmt.Errorf("--%s takes a whole number of MiB, or one with m or g, as 512m or 1g, not %q", flag, text)}
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
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
			return nil, usageError{fmt.Errorf("--label takes KEY=VALUE, not %q", pair)}
		}
		m[key] = value
	}
	return m, nil
}
