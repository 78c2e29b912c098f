package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// named is what a reference can mean.
type named struct{ id, name string }

func (n named) String() string {
	if n.name == "" {
		return n.id
	}
	return n.id + " (" + n.name + ")"
}

// pick finds what ref means: an id, a name, or the beginning of one id, with or
// without the part up to the underscore. noun is for the error.
func pick(noun, ref string, among []named) (named, error) {
	if ref == "" {
		return named{}, fmt.Errorf("the %s's name is empty", noun)
	}
	for _, n := range among {
		if n.id == ref {
			return n, nil
		}
	}
	for _, n := range among {
		if n.name == ref {
			return n, nil
		}
	}
	var found []named
	for _, n := range among {
		_, rest, _ := strings.Cut(n.id, "_")
		if strings.HasPrefix(n.id, ref) || strings.HasPrefix(rest, ref) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return named{}, absent{noun, ref}
	case 1:
		return found[0], nil
	}
	return named{}, ambiguous(noun, ref, found)
}

// maxMatches bounds how many are listed.
const maxMatches = 5

// absent is the failure to find what a reference means.
type absent struct{ noun, ref string }

func (a absent) Error() string { return fmt.Sprintf("there is no %s %q", a.noun, a.ref) }

func isAbsent(err error) bool {
	var a absent
	return errors.As(err, &a)
}

func ambiguous(noun, ref string, found []named) error {
	var list []string
	for _, n := range found[:min(len(found), maxMatches)] {
		list = append(list, n.String())
	}
	if more := len(found) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return hint(fmt.Errorf("%q could be any of these %ss: %s", ref, noun, strings.Join(list, ", ")), "give more of the id")
}

// pickFrom is pick among things of type T.
func pickFrom[T any](noun, ref string, things []T, name func(T) named) (T, error) {
	names := make([]named, len(things))
	for i, t := range things {
		names[i] = name(t)
	}
	found, err := pick(noun, ref, names)
	if err != nil {
		var none T
		return none, err
	}
	return things[slices.Index(names, found)], nil
}

func vmName(v api.VM) named             { return named{v.ID, v.Name} }
func imageName(i api.Image) named       { return named{i.ID, i.Name} }
func templateName(t api.Template) named { return named{t.ID, t.Name} }
func keyName(k api.Key) named           { return named{k.ID, k.Name} }

var wholeVMID = regexp.MustCompile(`^vm_[a-z0-9]{12}$`)

// findVM returns the VM that ref means, without what only GET of one VM shows.
func findVM(ctx context.Context, server *client.Client, ref string) (api.VM, error) {
	if wholeVMID.MatchString(ref) {
		found, err := server.GetVM(ctx, ref)
		if err == nil || !client.IsNotFound(err) {
			return found, err
		}
		return api.VM{}, hint(absent{"VM", ref}, "hatch ls")
	}
	vms, err := allVMs(ctx, server, client.ListOptions{})
	if err != nil {
		return api.VM{}, err
	}
	found, err := pickFrom("VM", ref, vms, vmName)
	return found, orList(err, "hatch ls")
}

// orList adds the command that lists what there is, when there is no hint yet.
func orList(err error, command string) error {
	var has hinted
	if err == nil || errors.As(err, &has) {
		return err
	}
	return hint(err, "%s", command)
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

func findImage(ctx context.Context, server *client.Client, ref string) (api.Image, error) {
	images, err := server.ListImages(ctx)
	if err != nil {
		return api.Image{}, err
	}
	found, err := pickFrom("image", ref, images, imageName)
	return found, orList(err, "hatch image ls")
}

func findTemplate(ctx context.Context, server *client.Client, ref string) (api.Template, error) {
	templates, err := server.ListTemplates(ctx)
	if err != nil {
		return api.Template{}, err
	}
	found, err := pickFrom("template", ref, templates, templateName)
	return found, orList(err, "hatch template ls")
}

func findKey(ctx context.Context, server *client.Client, ref string) (api.Key, error) {
	keys, err := server.ListKeys(ctx)
	if err != nil {
		return api.Key{}, err
	}
	found, err := pickFrom("key", ref, keys, keyName)
	return found, orList(err, "hatch key ls")
}
