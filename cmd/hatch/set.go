package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// setFlags are the flags of set. Those that were not given change nothing.
type setFlags struct {
	name, description, memory string
	labels                    []string
	vcpus                     int
	idleCPU                   int

	idle, idleAction, idleNetwork, ttl, expireAction string
	implicit                                         string
	publish, from, unpublish                         []string
}

func (c vmCommands) setCommand() *cobra.Command {
	f := &setFlags{}
	cmd := &cobra.Command{
		Use: "set VM", Short: "Change a VM: its name, description, labels, idle policy and published ports, or the sizes of a stopped one", Args: oneArg("VM"),
		Example:           "  hatch set web --name db --label tier=db --label old-\n  hatch set web --idle 30m --ttl 8h\n  hatch set web --publish 8080:80 --unpublish 22\n  hatch stop web && hatch set web --memory 2g --vcpus 2 && hatch start web",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := f.request(cmd)
			if err != nil {
				return err
			}
			return c.change(cmd, args, "change", func(v api.VM) string { return "changing " + displayName(v) },
				func(server *client.Client, v api.VM) (api.VM, error) {
					if len(f.publish)+len(f.unpublish) > 0 {
						ports, err := f.ports(v.Ports)
						if err != nil {
							return v, err
						}
						body.Ports = &ports
					}
					return server.UpdateVM(cmd.Context(), v.ID, body)
				})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "new name, \"\" for none; the guest keeps its hostname")
	flags.StringVar(&f.description, "description", "", "new description, \"\" for none")
	flags.StringArrayVar(&f.labels, "label", nil, "set label `KEY=VALUE`, or remove label KEY- (repeatable)")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory `size` of a stopped VM: MiB, or as 512m or 1g")
	flags.IntVar(&f.vcpus, "vcpus", 0, "virtual CPUs of a stopped VM")
	flags.StringVar(&f.idle, "idle", "", "put it to sleep after this `time` without activity, as 10m; 0 for never")
	flags.StringVar(&f.idleAction, "idle-action", "", "what happens to it when it is idle: sleep, stop or none")
	flags.IntVar(&f.idleCPU, "idle-cpu", 0, "`percent` of one CPU, used by the guest on average, from which it is not idle; 0 for never")
	flags.StringVar(&f.idleNetwork, "idle-network", "", "`bytes` to and from the guest, within the time of --idle, from which it is not idle, as 512k or 20m; 0 for never")
	flags.StringVar(&f.ttl, "ttl", "", "stop it this `time` from now, as 2h; 0 for never")
	flags.StringVar(&f.expireAction, "expire-action", "", "what happens to it then: stop, sleep or delete")
	flags.StringVar(&f.implicit, "implicit-routes", "", "whether PORT-VM leads to its ports, for callers with a key or a signed link: on or off")
	flags.StringArrayVarP(&f.publish, "publish", "p", nil, "publish `PORT` of the guest on the server: [HOST:]GUEST, as 80 or 8080:80 (repeatable)")
	flags.StringArrayVar(&f.from, "publish-from", nil, "`network` that may connect to the ports of --publish, as 192.0.2.0/24 (repeatable)")
	flags.StringArrayVar(&f.unpublish, "unpublish", nil, "no longer publish `PORT` of the guest (repeatable)")
	return cmd
}

// ports returns the ports that a VM is to publish, given those that it does.
func (f *setFlags) ports(published []api.Port) ([]api.Port, error) {
	add, err := readPorts("publish", f.publish, f.from)
	if err != nil {
		return nil, err
	}
	var remove []int
	for _, text := range f.unpublish {
		guest, err := readPortNumber(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--unpublish takes a port of the guest, as 80, not %q", text)}
		}
		remove = append(remove, guest)
	}
	return republish(published, add, remove)
}

// request returns the change that the given flags make.
func (f *setFlags) request(cmd *cobra.Command) (body api.UpdateVM, err error) {
	given := cmd.Flags().Changed
	if given("name") {
		body.Name = &f.name
	}
	if given("description") {
		body.Description = &f.description
	}
	if given("vcpus") {
		body.VCPUCount = &f.vcpus
	}
	if given("memory") {
		if body.MemMiB, err = size("memory", f.memory); err != nil {
			return body, err
		}
	}
	if body.Idle, err = f.idlePolicy(given); err != nil {
		return body, err
	}
	if given("ttl") {
		if body.TTLSeconds, err = wholeSeconds("ttl", f.ttl); err != nil {
			return body, err
		}
	}
	if given("expire-action") {
		body.ExpireAction = &f.expireAction
	}
	if given("implicit-routes") {
		if body.ImplicitRoutes, err = onOff("implicit-routes", f.implicit); err != nil {
			return body, err
		}
	}
	for _, label := range f.labels {
		if body.Labels == nil {
			body.Labels = map[string]*string{}
		}
		key, value, isSet := strings.Cut(label, "=")
		removed, isRemoved := strings.CutSuffix(label, "-")
		switch {
		case isSet && key != "":
			body.Labels[key] = &value
		case !isSet && isRemoved && removed != "":
			body.Labels[removed] = nil
		default:
			return body, usage(cmd, "--label takes KEY=VALUE, or KEY- to remove a label, not %q", label)
		}
	}
	if given("publish-from") && !given("publish") {
		return body, usage(cmd, "--publish-from needs --publish")
	}
	if cmd.Flags().NFlag() == 0 {
		return body, fmt.Errorf("nothing to change: see %s --help", cmd.CommandPath())
	}
	return body, nil
}

// idlePolicy returns the change of the idle policy, nil for none.
func (f *setFlags) idlePolicy(given func(flag string) bool) (*api.Idle, error) {
	policy, err := api.Idle{Action: f.idleAction}, error(nil)
	if given("idle") {
		if policy.TimeoutSeconds, err = wholeSeconds("idle", f.idle); err != nil {
			return nil, err
		}
	}
	if given("idle-cpu") {
		policy.CPUPercent = &f.idleCPU
	}
	if given("idle-network") {
		n, err := rate("idle-network", f.idleNetwork)
		if err != nil {
			return nil, err
		}
		policy.NetworkBytes = &n
	}
	if policy == (api.Idle{}) && !given("idle-action") {
		return nil, nil
	}
	return &policy, nil
}
