package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/template"
)

// Templates is what can be done with templates. [template.Service] is one.
type Templates interface {
	// Create stores t, whose ID, OwnerID and times it fills in.
	Create(ctx context.Context, owner string, t template.Template) (template.Template, error)
	Template(ctx context.Context, owner, id string) (template.Template, error)
	List(ctx context.Context, owner string) ([]template.Template, error)
	Delete(ctx context.Context, owner, id string) error
}

type createTemplateInput struct {
	Body api.CreateTemplate
}

func (d *door) createTemplate(ctx context.Context, in *createTemplateInput) (*created[api.Template], error) {
	t, err := d.Templates.Create(ctx, owner(ctx), newTemplate(in.Body))
	if err != nil {
		return nil, err
	}
	return &created[api.Template]{Location: "/templates/" + t.ID, Body: wholeTemplate(t)}, nil
}

type listTemplatesOutput struct {
	Body []api.Template `nullable:"false"`
}

func (d *door) listTemplates(ctx context.Context, _ *struct{}) (*listTemplatesOutput, error) {
	templates, err := d.Templates.List(ctx, owner(ctx))
	if err != nil {
		return nil, err
	}
	out := &listTemplatesOutput{Body: make([]api.Template, len(templates))}
	for i, t := range templates {
		out.Body[i] = wholeTemplate(t)
		out.Body[i].UserData = nil // it may hold secrets
	}
	return out, nil
}

func (d *door) getTemplate(ctx context.Context, in *IDPath) (*answer[api.Template], error) {
	t, err := d.Templates.Template(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Template]{Body: wholeTemplate(t)}, nil
}

func (d *door) deleteTemplate(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := d.Templates.Delete(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func newTemplate(b api.CreateTemplate) template.Template {
	return template.Template{
		Name: b.Name, Description: b.Description,
		Defaults: template.Defaults{
			ImageID: b.ImageID, VCPUs: b.VCPUCount, MemMiB: b.MemMiB, DiskMiB: b.DiskMiB,
			BootArgs: b.BootArgs, EnableNetwork: b.EnableNetwork, UserData: b.UserData,
			Labels: b.Labels, SSHKeys: b.SSHAuthorizedKeys, RateLimits: rateLimits(b.RateLimits),
		},
	}
}

func wholeTemplate(t template.Template) api.Template {
	out := api.Template{
		ID: t.ID,
		CreateTemplate: api.CreateTemplate{
			Name: t.Name, Description: t.Description, ImageID: t.ImageID,
			VCPUCount: t.VCPUs, MemMiB: t.MemMiB, DiskMiB: t.DiskMiB, BootArgs: t.BootArgs,
			EnableNetwork: t.EnableNetwork, UserData: t.UserData, Labels: t.Labels, SSHAuthorizedKeys: t.SSHKeys,
		},
		CreatedAt: utc(t.CreatedAt), UpdatedAt: utc(t.UpdatedAt),
	}
	if t.RateLimits != nil {
		out.RateLimits = shownRateLimits(*t.RateLimits)
	}
	return out
}
