// Package deploy has what runs beside the exporter. Its tests run each part with the programs that read it.
package deploy

import "embed"

// Documents are the runbook, the changes, and what docs has, in Markdown. The exporter serves them.
//
//go:embed runbook.md CHANGELOG.md docs/*.md
var Documents embed.FS
