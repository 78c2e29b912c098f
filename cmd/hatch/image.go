package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var imageKind = kind[api.Image]{
	noun: "image", ls: "hatch image ls",
	list: (*client.Client).ListImages,
	name: func(i api.Image) named { return named{i.ID, i.Name} },
}

// imageCommands are hatch image.
type imageCommands struct {
	*printer
	*connection
}

func (c imageCommands) command() *cobra.Command {
	common := nounCommands[api.Image]{
		printer: c.printer, connection: c.connection, kind: imageKind,
		get: (*client.Client).GetImage, remove: (*client.Client).DeleteImage, table: c.table,
	}
	return noun("image", "Manage the images that VMs start from",
		c.buildCommand(), c.addCommand(), c.warmCommand(), common.lsCommand("List images"), common.inspectCommand(), common.rmCommand(),
		shareCommand(common, func(server *client.Client, cmd *cobra.Command, id, visibility string, with []string) (api.Image, error) {
			return server.UpdateImage(cmd.Context(), id, api.UpdateImage{Visibility: &visibility, SharedWith: with})
		}))
}

func (c imageCommands) table(images []api.Image, wide bool) table {
	t := table{head: []string{"ID", "NAME", "SIZE", "FORMAT", "KERNEL", "CLOUD-INIT", "AGE"}}
	if wide {
		t.head = append(t.head, "DISK", "OWNER", "VISIBILITY", "ROOTFS DIGEST", "KERNEL DIGEST")
	}
	for _, i := range images {
		cells := []string{i.ID, i.Name, mib(i.RootfsBytes >> 20), i.RootfsFormat, i.KernelVersion, yesNo(i.CloudInit), c.age(i.CreatedAt)}
		if wide {
			cells = append(cells, i.DiskMode, i.OwnerID, i.Visibility, i.RootfsDigest, i.KernelDigest)
		}
		t.row(cells...)
	}
	return t
}

func (c imageCommands) buildCommand() *cobra.Command {
	var body api.BuildImage
	var quiet bool
	cmd := &cobra.Command{
		Use: "build [debian|minimal|base]", Short: "Build an image on the server and print its id",
		Long: `Build an image on the server and print its id. debian (the default) is Debian
12 with systemd, sshd and cloud-init, and becomes img_default; minimal is a
busybox userland without an SSH server or cloud-init, and becomes img_minimal;
base is debian with a user, Python, Node and git, as the client libraries of E2B
expect them, and becomes img_base.
An image that was built before comes from the cache. The build continues if this
command is interrupted.`,
		ValidArgs: []string{"debian", "minimal", "base"},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, "one image is built at a time")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			body.Recipe = strings.Join(args, "")
			build, err := c.build(cmd.Context(), body, quiet)
			if err != nil {
				return fmt.Errorf("cannot build the image: %w", err)
			}
			return c.printLine(build, build.ImageID)
		},
	}
	cmd.Flags().BoolVar(&body.Force, "force", false, "build even if the cache has it")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show the build's progress")
	return cmd
}

func (c imageCommands) build(ctx context.Context, body api.BuildImage, quiet bool) (api.ImageBuild, error) {
	server, err := c.client()
	if err != nil {
		return api.ImageBuild{}, err
	}
	build, err := server.StartImageBuild(ctx, body)
	if err != nil {
		return build, err
	}
	if err := c.printBuildLog(ctx, server, build.ID, quiet); err != nil {
		return build, fmt.Errorf("cannot follow it: %w", err)
	}
	if build, err = awaitBuild(ctx, server, build.ID); err != nil {
		return build, err
	}
	if build.State == "failed" {
		return build, errors.New(build.Error)
	}
	return build, nil
}

func (c imageCommands) printBuildLog(ctx context.Context, server *client.Client, id string, quiet bool) error {
	log, err := server.ImageBuildLog(ctx, id, true)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	to := io.Discard
	if !quiet {
		to = &cleaner{w: c.err}
	}
	_, err = io.Copy(to, log)
	return err
}

const buildPoll = 200 * time.Millisecond

// awaitBuild returns the build once it has ended; its log usually ends just
// before.
func awaitBuild(ctx context.Context, server *client.Client, id string) (api.ImageBuild, error) {
	tick := time.NewTicker(buildPoll)
	defer tick.Stop()
	for {
		build, err := server.GetImageBuild(ctx, id)
		if err != nil || build.State != "running" {
			return build, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return build, ctx.Err()
		}
	}
}

func (c imageCommands) addCommand() *cobra.Command {
	var body api.CreateImage
	cmd := &cobra.Command{
		Use: "add --kernel FILE --rootfs FILE", Short: "Register a kernel and a root file system of the server's host", Args: noArgs,
		Example: "  hatch image add --name mine --kernel /srv/images/vmlinuz --rootfs /srv/images/root.ext4",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if body.KernelPath == "" || body.RootfsPath == "" {
				return usage(cmd, "--kernel and --rootfs are required")
			}
			if err := c.absolute(&body.KernelPath, &body.RootfsPath, &body.ModulesPath); err != nil {
				return err
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			end := c.progress("examining the image")
			image, err := server.CreateImage(cmd.Context(), body)
			end()
			if err != nil {
				return fmt.Errorf("cannot add the image: %w", err)
			}
			return c.printLine(image, image.ID)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&body.ID, "id", "", "id: img_ and letters, digits or _; generated by default")
	flags.StringVar(&body.Name, "name", "", "name")
	flags.StringVar(&body.KernelPath, "kernel", "", "kernel `file` on the server's host")
	flags.StringVar(&body.RootfsPath, "rootfs", "", "root file system `file` on the server's host")
	flags.StringVar(&body.ModulesPath, "modules", "", "`directory` of the kernel's modules on the server's host")
	flags.StringVar(&body.BootArgs, "boot-args", "", "kernel boot `arguments`")
	return cmd
}

// absolute makes paths absolute if the server is on this machine. Another server
// refuses relative ones.
func (c imageCommands) absolute(paths ...*string) error {
	t, err := c.target()
	if err != nil || t.socket() == "" && !isLoopback(t.url) {
		return err
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("cannot use %q: %w", *p, err)
		}
		*p = abs
	}
	return nil
}
