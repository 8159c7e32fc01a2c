package helm

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
)

// TestPackage checks that helm package, which does this, puts the rules and the dashboard into the
// archive where the chart has symbolic links, and leaves out the tests. With CHART in the environment, it checks that
// archive of a release.
func TestPackage(t *testing.T) {
	path := os.Getenv("CHART")
	if path == "" {
		var err error
		if path, err = chartutil.Save(load(t), t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(unzipped)
	got := map[string]string{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			t.Errorf("%s is no regular file", header.Name)
		}
		got[header.Name] = string(content)
	}
	const top = "ephemeral-port-exporter/"
	if diff := cmp.Diff([]string{
		top + ".helmignore", top + "Chart.yaml", top + "README.md", top + "files/dashboard.json", top + "files/rules.yml",
		top + "templates/NOTES.txt", top + "templates/_features.tpl", top + "templates/_helpers.tpl", top + "templates/daemonset.yaml", top + "templates/dashboard.yaml",
		top + "templates/monitor.yaml", top + "templates/prometheusrule.yaml", top + "templates/serviceaccount.yaml",
		top + "values.schema.json", top + "values.yaml",
	}, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for name, source := range map[string]string{"files/rules.yml": rulesFile, "files/dashboard.json": dashboardFile} {
		if got[top+name] != readFile(t, source) {
			t.Errorf("%s differs from %s", name, source)
		}
		if target, err := os.Readlink(name); err != nil || target != "../"+source {
			t.Errorf("%s is no link to %s: %v", name, source, err)
		}
	}

	packaged, err := loader.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	values := readFile(t, "testdata/kube-prometheus-stack.yaml")
	want, err := template(load(t), values)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := template(packaged, values); err != nil || text != want {
		t.Errorf("the archive makes other objects: %v\n%s", err, cmp.Diff(want, text))
	}
	release := regexp.MustCompile(`\n## (\d\S*) /`).FindStringSubmatch(readFile(t, "../CHANGELOG.md"))[1]
	if got := packaged.Metadata; got.Version != release || got.AppVersion != release {
		t.Errorf("chart %s with the image %s, the release is %s", got.Version, got.AppVersion, release)
	}
}
