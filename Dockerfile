FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION=dev REVISION=unknown
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY collector collector
COPY procfs procfs
COPY deploy/embed.go deploy/runbook.md deploy/CHANGELOG.md deploy/
COPY deploy/docs deploy/docs
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -o /out/ephemeral_port_exporter -ldflags "-s -w -X github.com/prometheus/common/version.Version=$VERSION -X github.com/prometheus/common/version.Revision=$REVISION" ./cmd/ephemeral_port_exporter

FROM scratch
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="ephemeral_port_exporter" \
      org.opencontainers.image.description="Prometheus exporter for ephemeral-port exhaustion" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/ephemeral_port_exporter /ephemeral_port_exporter
USER 65534:65534
EXPOSE 10149
ENTRYPOINT ["/ephemeral_port_exporter"]
