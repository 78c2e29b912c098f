package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// createFlags are the flags of create and run.
type createFlags struct {
	name     string
	template string
	ip, mac  string
	vmm      string
	wait     string
	timeout  time.Duration
	key      string
	quiet    bool
	snapshot string
	count    int // of VMs to clone; used only if it was given

	temporary bool // the VM is removed afterwards
}

const defaultWait = 5 * time.Minute

func (f *createFlags) add(conn *connection, cmd *cobra.Command) {
	addMachineFlags(conn, cmd, machineFlags)
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name and hostname: up to 63 lower-case letters, digits and hyphens")
	flags.StringVar(&f.template, "template", "", "`template` with default values")
	flags.StringVar(&f.ip, "ip", "", "IPv4 `address` of the guest")
	flags.StringVar(&f.mac, "mac", "", "MAC `address` of the guest")
	addVMM(cmd, &f.vmm)
	flags.DurationVar(&f.timeout, "timeout", defaultWait, "how long to wait for the VM to be ready, such as 90s or 15m")
	flags.StringVar(&f.key, "idempotency-key", "", "makes it safe to send the same create again")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the id only")
	_ = cmd.RegisterFlagCompletionFunc("template", templateKind.complete(conn))
}

// checkTimeout refuses a timeout that is not one: the server would take its default.
func checkTimeout(cmd *cobra.Command, timeout time.Duration) error {
	if timeout <= 0 {
		return usage(cmd, "--timeout takes more than 0s, such as 90s or 15m, not %s", timeout)
	}
	return nil
}

func addVMM(cmd *cobra.Command, vmm *string) {
	cmd.Flags().StringVar(vmm, "vmm", "", "auto, qemu or firecracker")
	_ = cmd.RegisterFlagCompletionFunc("vmm", cobra.FixedCompletions([]string{"auto", "qemu", "firecracker"}, cobra.ShellCompDirectiveNoFileComp))
}

// request returns the API's request from the flags that were given.
func (f *createFlags) request(ctx context.Context, s streams, cmd *cobra.Command, server *client.Client) (api.CreateVM, error) {
	spec, err := readMachine(s, cmd, server)
	if err != nil {
		return api.CreateVM{}, err
	}
	req := api.CreateVM{MachineSpec: spec, Name: f.name, GuestIP: f.ip, GuestMAC: f.mac, VMM: f.vmm}
	if f.template != "" {
		t, err := templateKind.find(ctx, server, f.template)
		if err != nil {
			return req, err
		}
		req.TemplateID = t.ID
	}
	if f.snapshot != "" {
		snap, err := snapshotKind.find(ctx, server, f.snapshot)
		if err != nil {
			return req, err
		}
		req.SnapshotID = snap.ID
	}
	if cmd.Flags().Changed("count") {
		req.Count = &f.count
	}
	return req, nil
}

// createCommands are hatch create, and what hatch run needs of it.
type createCommands struct {
	*printer
	*connection
}

func (c createCommands) create() *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use: "create [flags] [IMAGE]", Short: "Create a VM, start it and print its id", Args: imageArg,
		Example: "  hatch create --name web --memory 1g --ssh-key default --wait ready\n  hatch create --user-data cloud-config.yaml --label team=a minimal\n  hatch create --snapshot ready-to-work --count 3 --name worker",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.wait != "running" && f.wait != "ready" {
				return usage(cmd, "--wait takes running or ready, not %q", f.wait)
			}
			if err := checkTimeout(cmd, f.timeout); err != nil {
				return err
			}
			if cmd.Flags().Changed("count") {
				if f.snapshot == "" || f.count < 1 {
					return usage(cmd, "--count takes 1 or more, and needs --snapshot")
				}
				return c.createClones(cmd, f)
			}
			v, err := c.createVM(cmd, f, f.wait == "ready")
			if v.ID == "" {
				return err
			}
			if printErr := c.printCreated(v, f.quiet); printErr != nil {
				return printErr
			}
			return err
		},
	}
	f.add(c.connection, cmd)
	cmd.Flags().StringVar(&f.snapshot, "snapshot", "", "clone this `snapshot` instead of booting an image")
	cmd.Flags().IntVar(&f.count, "count", 1, "how many VMs to clone from the snapshot, up to 64; -1, -2 and so on is added to the name")
	_ = cmd.RegisterFlagCompletionFunc("snapshot", snapshotKind.complete(c.connection))
	cmd.Flags().StringVar(&f.wait, "wait", "running", "what to wait for: running, or ready (the guest's services, too)")
	_ = cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"running", "ready"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = imageKind.complete(c.connection)
	return cmd
}

// imageArg accepts the image as the only argument, as docker does.
func imageArg(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		args = args[:dash]
	}
	switch {
	case len(args) == 0:
		return nil
	case len(args) > 1:
		return usage(cmd, "%s takes one image; %s were given (a command goes after --)", cmd.CommandPath(), strings.Join(args, " and "))
	}
	image := cmd.Flags().Lookup("image").Value
	if image.String() != "" {
		return usage(cmd, "the image is given twice: %s and %s", image, args[0])
	}
	return cmd.Flags().Set("image", args[0])
}

// createVM creates a VM. If waiting until it is ready fails, the VM is returned
// with the error.
func (c createCommands) createVM(cmd *cobra.Command, f *createFlags, ready bool) (api.VM, error) {
	ctx := cmd.Context()
	server, err := c.client()
	if err != nil {
		return api.VM{}, err
	}
	req, err := f.request(ctx, c.streams, cmd, server)
	if err != nil {
		return api.VM{}, fmt.Errorf("cannot create the VM: %w", err)
	}
	v, err := c.send(ctx, server, req, f)
	switch {
	case err != nil:
		err = fmt.Errorf("cannot create the VM: %w", err)
	case ready:
		v, err = c.awaitReady(ctx, server, v, f.timeout)
	}
	if err != nil && ctx.Err() != nil && v.ID != "" && !f.temporary {
		err = hint(fmt.Errorf("%w: %s was created, and stays", errInterrupted, v.ID), "hatch rm -f %s", v.ID)
	}
	return v, err
}

// send sends the request. If it was interrupted, the server still creates the
// VM; it is then looked up by its idempotency key, to be named or removed.
func (c createCommands) send(ctx context.Context, server *client.Client, req api.CreateVM, f *createFlags) (api.VM, error) {
	defer c.progress("creating the VM")()
	opts := client.CreateOptions{Wait: "running", IdempotencyKey: cmp.Or(f.key, "cli-"+rand.Text())}
	v, err := server.CreateVM(ctx, req, opts)
	if failed, ok := errors.AsType[*client.Error](err); ok && f.temporary {
		v.ID = failed.Problem.VMID // to be removed
	}
	if err == nil || ctx.Err() == nil {
		return v, err
	}
	retryCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if created, retryErr := server.CreateVM(retryCtx, req, opts); retryErr == nil {
		v = created
	}
	return v, err
}

func (c createCommands) awaitReady(ctx context.Context, server *client.Client, v api.VM, timeout time.Duration) (api.VM, error) {
	end := c.progress("waiting until " + displayName(v) + " is ready")
	ready, err := server.WaitVM(ctx, v.ID, "ready", timeout)
	end()
	if err != nil {
		return v, hint(fmt.Errorf("%s was created, but is not ready: %w", displayName(v), err),
			"hatch logs %[1]s shows its console, hatch wait %[1]s waits longer", displayName(v))
	}
	return ready, nil
}

func (c createCommands) printCreated(v api.VM, quiet bool) error {
	if quiet {
		fmt.Fprintln(c.out, v.ID)
		return nil
	}
	return c.printLine(v, v.ID)
}

// createClones creates several VMs from a snapshot.
func (c createCommands) createClones(cmd *cobra.Command, f *createFlags) error {
	server, err := c.client()
	if err != nil {
		return fmt.Errorf("cannot create the VMs: %w", err)
	}
	req, err := f.request(cmd.Context(), c.streams, cmd, server)
	if err != nil {
		return fmt.Errorf("cannot create the VMs: %w", err)
	}
	end := c.progress("creating the VMs")
	clones, err := server.CreateVMs(cmd.Context(), req, client.CreateOptions{IdempotencyKey: f.key})
	end()
	if err != nil {
		return fmt.Errorf("cannot create the VMs: %w", err)
	}
	if err := printClones(c.printer, clones); err != nil || f.wait != "ready" {
		return err
	}
	for _, v := range clones.VMs {
		if _, err := c.awaitReady(cmd.Context(), server, v, f.timeout); err != nil {
			return err
		}
	}
	return nil
}

// printClones prints the new VMs, and why others could not be created.
func printClones(p *printer, clones api.Copies) error {
	ids := func() {
		for _, v := range clones.VMs {
			fmt.Fprintln(p.out, clean(v.ID))
		}
	}
	if err := p.printOne(clones, ids); err != nil {
		return err
	}
	for _, f := range clones.Failed {
		failed := fmt.Errorf("cannot make one of the VMs: %w", errors.New(f.Message))
		if f.VMID != "" {
			f.Hint = "hatch why " + f.VMID + " says more"
		}
		if f.Hint != "" {
			failed = hint(failed, "%s", f.Hint)
		}
		p.report(failed)
	}
	if len(clones.Failed) > 0 {
		return exitError(exitOwn)
	}
	return nil
}
