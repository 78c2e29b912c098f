package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var vmKind = kind[api.VM]{
	noun: "VM", ls: "hatch ls",
	list: func(server *client.Client, ctx context.Context) ([]api.VM, error) {
		return allVMs(ctx, server, client.ListOptions{})
	},
	name:  func(v api.VM) named { return named{v.ID, v.Name} },
	about: func(v api.VM) string { return v.State },
}

const pageSize = 1000

func allVMs(ctx context.Context, server *client.Client, opts client.ListOptions) ([]api.VM, error) {
	opts.PageSize = pageSize
	var vms []api.VM
	for v, err := range server.ListVMs(ctx, opts) {
		if err != nil {
			return nil, err
		}
		vms = append(vms, v)
	}
	return vms, nil
}

var wholeVMID = regexp.MustCompile(`^vm_[a-z0-9]{12}$`)

// findVM returns the VM that ref refers to. Fields that only GET of one VM has
// may be missing.
func findVM(ctx context.Context, server *client.Client, ref string) (api.VM, error) {
	if !wholeVMID.MatchString(ref) {
		return vmKind.find(ctx, server, ref)
	}
	found, err := server.GetVM(ctx, ref)
	if client.IsNotFound(err) {
		err = hint(absent{vmKind.noun, ref}, "%s", vmKind.ls)
	}
	return found, err
}

// displayName returns the name of a VM, or its id.
func displayName(v api.VM) string {
	if v.Name != "" {
		return v.Name
	}
	return v.ID
}

// onVM connects, finds the VM that ref refers to and calls do, with a spinner.
func onVM[T any](p *printer, conn *connection, ctx context.Context, ref, doing string, do func(*client.Client, api.VM) (T, error)) (T, error) {
	server, v, err := conn.openVM(ctx, ref)
	if err != nil {
		var none T
		return none, err
	}
	defer p.progress(doing + " " + displayName(v))()
	return do(server, v)
}

// vmCommands are the commands about VMs as a whole.
type vmCommands struct {
	*printer
	*connection
}

func (c vmCommands) commands() []*cobra.Command {
	resume := c.verbCommand("resume", "resuming", "Resume paused VMs", (*client.Client).ResumeVM)
	resume.Aliases = []string{"unpause"}
	var durable bool
	sleep := c.verbCommand("sleep", "sending to sleep", "Put VMs to sleep: save their memory and end their processes",
		func(server *client.Client, ctx context.Context, id string) (api.VM, error) {
			if durable {
				return server.SleepVMDurably(ctx, id)
			}
			return server.SleepVM(ctx, id)
		})
	sleep.Flags().BoolVar(&durable, "durable", false, "return once the memory is on disk: before, a power cut loses it")
	sleep.Long = `Put VMs to sleep: save their memory and end their processes. They keep address,
MAC and SSH port. hatch wake continues them where they were, and so does access
to the guest: over SSH, with exec, cp or console, or with a wait for something
inside. hatch start boots them anew.`
	return []*cobra.Command{
		c.lsCommand(), c.inspectCommand(), c.portCommand(), c.setCommand(), c.renameCommand(), c.rmCommand(), c.pruneCommand(), c.waitCommand(), resume, sleep,
		c.startCommand("start", "starting", "Start stopped VMs", (*client.Client).StartVM),
		c.stopCommand(),
		c.verbCommand("kill", "killing", "End VMs at once, without asking their guests", func(server *client.Client, ctx context.Context, id string) (api.VM, error) {
			return server.StopVMWithin(ctx, id, 0)
		}),
		c.startCommand("restart", "restarting", "Stop VMs and start them again", (*client.Client).RestartVM),
		c.verbCommand("pause", "pausing", "Halt the CPUs of VMs", (*client.Client).PauseVM),
		c.verbCommand("wake", "waking", "Continue sleeping VMs where they were", (*client.Client).WakeVM),
	}
}

func (c vmCommands) lsCommand() *cobra.Command {
	var all bool
	var labels []string
	f := &listFlags{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"ps", "list"}, Short: "List VMs, newest first", Args: noArgs,
		Example: "  hatch ls --filter state=running --filter label=team=a\n  hatch ls --sort -mem_mib --format '{{.id}} {{.mem_mib}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := arranged[api.VM](nil, f); err != nil { // before the first request
				return err
			}
			opts := listOptions(f.filters)
			opts.Label = labels
			server, err := c.client()
			if err != nil {
				return err
			}
			vms, err := allVMs(cmd.Context(), server, opts)
			if err != nil {
				return fmt.Errorf("cannot list VMs: %w", err)
			}
			return printListed(c.printer, f, vms, vmKind.name, c.table)
		},
	}
	f.add(c.printer, cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "no effect, as in docker: stopped VMs are always listed")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "only VMs with this label: KEY, KEY=VALUE or KEY!=VALUE (repeatable)")
	return cmd
}

// listOptions returns the filters that the server knows. All are applied to what it
// returns.
func listOptions(filters []string) client.ListOptions {
	opts := client.ListOptions{Labels: map[string]string{}}
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		label, want, hasValue := strings.Cut(value, "=")
		switch {
		case key == "state":
			opts.State = value
		case key == "name":
			opts.Name = value
		case key == "label" && hasValue:
			opts.Labels[label] = want
		}
	}
	return opts
}

func (c vmCommands) table(vms []api.VM, wide bool) table {
	t := table{head: []string{"ID", "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "ADDRESS", "SSH", "AGE", "IDLE"}}
	if wide {
		t.head = append(t.head, "READY", "DISK", "MAC", "TAP", "VMM", "TEMPLATE", "LABELS", "PORTS", "REASON")
	}
	for _, v := range vms {
		port := ""
		if v.SSHPort != 0 {
			port = strconv.Itoa(v.SSHPort)
		}
		cells := []string{v.ID, v.Name, v.State, v.ImageID, strconv.Itoa(v.VCPUCount), mib(int64(v.MemMiB)), v.GuestIP, port, c.age(v.CreatedAt), c.idleness(v)}
		if wide {
			cells = append(cells, readiness(v), mib(int64(v.DiskMiB)), v.GuestMAC, v.TapName, v.VMM, v.TemplateID, labels(v.Labels), shownPorts(v.Ports), v.StateReason)
		}
		t.row(cells...)
	}
	return t
}

func labels(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, ",")
}

// readiness returns yes, or the first condition that is not true.
func readiness(v api.VM) string {
	if len(v.Conditions) == 0 {
		return ""
	}
	for _, cond := range v.Conditions {
		if cond.Status != api.StatusTrue {
			return "no: " + cond.Type
		}
	}
	return "yes"
}

func (c vmCommands) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect VM...", Short: "Show all fields of VMs, as JSON", Args: someArgs("VM"),
		Long:              "Show all fields of a VM as JSON, or of several VMs as a list.",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			return forEach(c.inspecting(cmd), cmd, refs, "inspect", func(r *results, ref string) error {
				v, err := findVM(cmd.Context(), server, ref)
				if err == nil {
					v, err = server.GetVM(cmd.Context(), v.ID)
				}
				if err != nil {
					return err
				}
				return r.add(v, func() { r.printFields(v) })
			})
		},
	}
}

// verbCommand returns a command that changes the state of VMs and prints their
// references as given, as docker does.
func (c vmCommands) verbCommand(verb, doing, short string, call func(*client.Client, context.Context, string) (api.VM, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " VM...", Short: short, Args: someArgs("VM"),
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.change(cmd, refs, verb, func(v api.VM) string { return doing + " " + v.ID },
				func(server *client.Client, v api.VM) (api.VM, error) { return call(server, cmd.Context(), v.ID) })
		},
	}
}

// startCommand is a verbCommand after which VMs run. It can wait until they are ready.
func (c vmCommands) startCommand(verb, doing, short string, call func(*client.Client, context.Context, string) (api.VM, error)) *cobra.Command {
	var wait string
	var timeout time.Duration
	cmd := c.verbCommand(verb, doing, short, func(server *client.Client, ctx context.Context, id string) (api.VM, error) {
		v, err := call(server, ctx, id)
		if err != nil || wait != "ready" {
			return v, err
		}
		return server.WaitVM(ctx, id, "ready", timeout)
	})
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if wait != "running" && wait != "ready" {
			return usage(cmd, "--wait takes running or ready, not %q", wait)
		}
		return checkTimeout(cmd, timeout)
	}
	cmd.Flags().StringVar(&wait, "wait", "running", "what to wait for: running, or ready (the guest's services, too)")
	cmd.Flags().DurationVar(&timeout, "timeout", defaultWait, "how long to wait for each VM to be ready, such as 90s or 15m")
	_ = cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"running", "ready"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c vmCommands) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename VM NAME", Short: "Give a VM another name", ValidArgsFunction: vmKind.completeFirst(c.connection),
		Long: "Give a VM another name, in any state. The guest keeps its hostname.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || args[1] == "" {
				return usage(cmd, "%s takes a VM and its new name", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, args[:1], "rename", func(v api.VM) string { return "renaming " + v.ID },
				func(server *client.Client, v api.VM) (api.VM, error) {
					return server.UpdateVM(cmd.Context(), v.ID, api.UpdateVM{Name: &args[1]})
				})
		},
	}
}

func (c vmCommands) stopCommand() *cobra.Command {
	var timeout seconds
	cmd := c.verbCommand("stop", "stopping", "Shut VMs down, by force after a timeout", func(server *client.Client, ctx context.Context, id string) (api.VM, error) {
		if timeout.given {
			return server.StopVMWithin(ctx, id, timeout.value)
		}
		return server.StopVM(ctx, id)
	})
	cmd.Flags().VarP(&timeout, "timeout", "t", "`time` to wait for the guest, at most 10m: seconds, or as 90s; 0 kills at once (default: the server's HATCH_STOP_TIMEOUT)")
	return cmd
}

// seconds is the value of a flag: a duration, or a number of seconds as for docker.
type seconds struct {
	value time.Duration
	given bool
}

// String returns "": the server has the default.
func (s *seconds) String() string { return "" }

// Type names the kind of value in help texts.
func (s *seconds) Type() string { return "time" }

// Set reads the value.
func (s *seconds) Set(text string) error {
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		text += "s"
	}
	var err error
	if s.value, err = time.ParseDuration(text); err != nil || s.value < 0 {
		return fmt.Errorf("%q is not a time: want seconds, or as 90s or 2m", text)
	}
	s.given = true
	return nil
}

// change calls do for every VM in refs, with a spinner, and prints the reference
// or the changed VM.
func (c vmCommands) change(cmd *cobra.Command, refs []string, verb string, doing func(api.VM) string, do func(*client.Client, api.VM) (api.VM, error)) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	return forEach(c.printer, cmd, refs, verb, func(r *results, ref string) error {
		v, err := findVM(cmd.Context(), server, ref)
		if err != nil {
			return err
		}
		end := c.progress(doing(v))
		v, err = do(server, v)
		end()
		if err != nil {
			return err
		}
		return r.addLine(v, ref)
	})
}

func (c vmCommands) waitCommand() *cobra.Command {
	var condition string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait VM...", Short: "Wait for a state of VMs, or for something inside them", Args: someArgs("VM"),
		Long: `Wait for a state of VMs (running, stopped, paused, …) or for something inside
them: ready (all conditions of the guest), agent, cloud-init, ssh, port:N (a TCP
port accepts) or http:PORT/PATH (a GET returns 2xx or 3xx). Ports are reached
over the VM's network or through its agent, so this works without a network.`,
		Example:           "  hatch wait web --for port:80 --timeout 2m\n  hatch wait web --for http:8080/health\n  hatch wait web --for stopped",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if err := checkTimeout(cmd, timeout); err != nil {
				return err
			}
			return c.change(cmd, refs, "wait for", func(v api.VM) string { return "waiting until " + displayName(v) + " is " + condition },
				func(server *client.Client, v api.VM) (api.VM, error) {
					return server.WaitVM(cmd.Context(), v.ID, condition, timeout)
				})
		},
	}
	cmd.Flags().StringVar(&condition, "for", "ready", "a state, ready, agent, cloud-init, ssh, port:N or http:PORT/PATH")
	cmd.Flags().DurationVar(&timeout, "timeout", defaultWait, "how long to wait, such as 90s or 15m")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(
		[]string{"ready", "agent", "cloud-init", "ssh", "port:", "http:", api.StateRunning, api.StateStopped, api.StatePaused}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c vmCommands) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm VM...", Aliases: []string{"delete"}, Short: "Delete VMs and their disks", Args: someArgs("VM"),
		Long:              "Delete VMs and their disks. A VM that is not stopped is deleted with -f only.\nWith -f, a VM that does not exist is not an error.",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			return forEach(c.printer, cmd, refs, "remove", func(r *results, ref string) error {
				v, err := findVM(cmd.Context(), server, ref)
				switch {
				case err != nil:
				case !force && !isOff(v):
					err = hint(fmt.Errorf("it is %s", v.State), "hatch rm -f %s, or stop it first", v.ID)
				default:
					err = removeVM(cmd.Context(), c.printer, server, v)
				}
				switch {
				case err == nil:
					return r.addDeleted(vmKind.name(v), ref)
				case force && (isAbsent(err) || client.IsNotFound(err)):
					return r.add(removal{Status: "absent", Ref: ref}, func() { fmt.Fprintf(c.err, "there is no VM %q; nothing was deleted\n", clean(ref)) })
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "delete running VMs, too")
	return cmd
}

// removeVM deletes a VM, and the host key that hatch ssh has stored for it.
func removeVM(ctx context.Context, p *printer, server *client.Client, v api.VM) error {
	defer p.progress("removing " + v.ID)()
	if err := server.DeleteVM(ctx, v.ID); err != nil {
		return err
	}
	knownHosts{p.env}.forget(v.ID)
	return nil
}
