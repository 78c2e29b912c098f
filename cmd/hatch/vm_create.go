package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// createFlags are the flags of create and run.
type createFlags struct {
	machine  machineFlags
	name     string
	template string
	ip, mac  string
	vmm      string
	wait     string
	timeout  time.Duration
	key      string
	quiet    bool
	snapshot string
	count    int // of the snapshot's VMs; it counts only when it was given

	temporary bool // the VM is removed afterwards
}

const defaultWait = 5 * time.Minute

func (f *createFlags) add(c *cli, cmd *cobra.Command) {
	f.machine.add(c, cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name and hostname")
	flags.StringVar(&f.template, "template", "", "take what is not given here from this `template`")
	flags.StringVar(&f.ip, "ip", "", "IPv4 `address` of the guest")
	flags.StringVar(&f.mac, "mac", "", "MAC `address` of the guest")
	addVMM(cmd, &f.vmm)
	flags.DurationVar(&f.timeout, "timeout", defaultWait, "how long to wait for the VM to be ready")
	flags.StringVar(&f.key, "idempotency-key", "", "makes it safe to send the same create again")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the id only")
	_ = cmd.RegisterFlagCompletionFunc("template", c.completeTemplates)
}

func addVMM(cmd *cobra.Command, vmm *string) {
	cmd.Flags().StringVar(vmm, "vmm", "", "auto, qemu or firecracker")
	_ = cmd.RegisterFlagCompletionFunc("vmm", cobra.FixedCompletions([]string{"auto", "qemu", "firecracker"}, cobra.ShellCompDirectiveNoFileComp))
}

// request makes the API's request of the flags that were given.
func (f *createFlags) request(ctx context.Context, c *cli, cmd *cobra.Command, server *client.Client) (api.CreateVM, error) {
	m, err := f.machine.read(ctx, c, cmd, server)
	if err != nil {
		return api.CreateVM{}, err
	}
	req := api.CreateVM{
		ImageID: m.imageID, VCPUCount: m.vcpus, MemMiB: m.memMiB, DiskMiB: m.diskMiB,
		BootArgs: m.bootArgs, EnableNetwork: m.network, UserData: m.userData,
		Labels: m.labels, SSHAuthorizedKeys: m.sshKeys, RateLimits: m.limits,
		Name: f.name, GuestIP: f.ip, GuestMAC: f.mac, VMM: f.vmm,
	}
	if f.template != "" {
		t, err := findTemplate(ctx, server, f.template)
		if err != nil {
			return req, err
		}
		req.TemplateID = t.ID
	}
	if f.snapshot != "" {
		s, err := findSnapshot(ctx, server, f.snapshot)
		if err != nil {
			return req, err
		}
		req.SnapshotID = s.ID
	}
	if cmd.Flags().Changed("count") {
		req.Count = &f.count
	}
	return req, nil
}

func (c *cli) createCommand() *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use: "create [flags] [IMAGE]", Short: "Create a VM, start it and print its id", Args: imageArg(f),
		Example: "  hatch create --name web --memory 1g --ssh-key default --wait ready\n  hatch create --user-data cloud-config.yaml --label team=a minimal\n  hatch create --snapshot ready-to-work --count 3 --name worker",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.wait != "running" && f.wait != "ready" {
				return usage(cmd, "--wait takes running or ready, not %q", f.wait)
			}
			if cmd.Flags().Changed("count") {
				if f.snapshot == "" || f.count < 1 {
					return usage(cmd, "--count takes 1 or more, and goes with --snapshot only")
				}
				return c.createCopies(cmd, f)
			}
			v, err := c.create(cmd, f, f.wait == "ready")
			if v.ID == "" {
				return err
			}
			if perr := c.showCreated(v, f.quiet); perr != nil {
				return perr
			}
			return err
		},
	}
	f.add(c, cmd)
	cmd.Flags().StringVar(&f.snapshot, "snapshot", "", "go on from this `snapshot` in place of booting an image")
	cmd.Flags().IntVar(&f.count, "count", 1, "how many VMs to make of the snapshot; -1, -2 and so on is added to the name")
	_ = cmd.RegisterFlagCompletionFunc("snapshot", c.completeSnapshots)
	cmd.Flags().StringVar(&f.wait, "wait", "running", "what to wait for: running, or ready (the guest's services too)")
	_ = cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"running", "ready"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = c.completeImages
	return cmd
}

// imageArg takes the image as docker does, as the only argument.
func imageArg(f *createFlags) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if dash := cmd.ArgsLenAtDash(); dash >= 0 {
			args = args[:dash]
		}
		switch {
		case len(args) == 0:
			return nil
		case len(args) > 1:
			return usage(cmd, "%s takes one image; %s were given (a command goes after --)", cmd.CommandPath(), strings.Join(args, " and "))
		case f.machine.image != "":
			return usage(cmd, "the image is given twice: %s and %s", f.machine.image, args[0])
		}
		f.machine.image = args[0]
		return nil
	}
}

// create makes a VM. When waiting for it to be ready fails, the VM is returned
// with the error.
func (c *cli) create(cmd *cobra.Command, f *createFlags, ready bool) (api.VM, error) {
	ctx := cmd.Context()
	server, err := c.client()
	if err != nil {
		return api.VM{}, err
	}
	req, err := f.request(ctx, c, cmd, server)
	if err != nil {
		return api.VM{}, fmt.Errorf("cannot create the VM: %w", err)
	}
	v, err := c.send(ctx, server, req, f)
	if err != nil {
		return v, fmt.Errorf("cannot create the VM: %w", err)
	}
	if !ready {
		return v, nil
	}
	return c.awaitReady(ctx, server, v, f.timeout)
}

// send sends the request. A VM that the server goes on making after we were
// interrupted is found again by its key, for whoever has to remove it.
func (c *cli) send(ctx context.Context, server *client.Client, req api.CreateVM, f *createFlags) (api.VM, error) {
	defer c.progress("creating the VM")()
	opts := client.CreateOptions{Wait: "running", IdempotencyKey: f.key}
	v, err := server.CreateVM(ctx, req, opts)
	if err == nil || ctx.Err() == nil || !f.temporary {
		return v, err
	}
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if made, lost := server.CreateVM(again, req, opts); lost == nil {
		v = made
	}
	return v, err
}

func (c *cli) awaitReady(ctx context.Context, server *client.Client, v api.VM, timeout time.Duration) (api.VM, error) {
	end := c.progress("waiting until " + displayName(v) + " is ready")
	ready, err := server.WaitVM(ctx, v.ID, "ready", timeout)
	end()
	if err != nil {
		return v, hint(fmt.Errorf("%s was created, but is not ready: %w", displayName(v), err),
			"hatch logs %[1]s shows its console, hatch wait %[1]s waits on", displayName(v))
	}
	return ready, nil
}

func (c *cli) showCreated(v api.VM, quiet bool) error {
	id := func() { fmt.Fprintln(c.out, v.ID) }
	if quiet {
		id()
		return nil
	}
	return c.printOne(v, id)
}

// displayName is what a person calls the VM.
func displayName(v api.VM) string {
	if v.Name != "" {
		return v.Name
	}
	return v.ID
}
