# The Action's image: its static program, the runner that it puts into images, the authorities that it trusts and a place for
# temporary files; no shell.
# GitHub builds it for `uses: ./` and act in tests, both without build arguments and perhaps without BuildKit.
#
# dist/action and dist/runner, where they are there, are taken as they are, and then BUILD needs no Go; else they are compiled.
# BUILD is of the version in go.mod.
ARG BUILD=golang:1.26.8-bookworm

FROM ${BUILD} AS build
WORKDIR /src
COPY . .
RUN set -e; \
    mkdir -p /out/etc/ssl/certs /out/tmp; \
    chmod 1777 /out/tmp; \
    cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/; \
    for program in action runner; do \
      if [ -f dist/$program ]; then cp dist/$program /out/$program; \
      else CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/$program ./cmd/$program; fi; \
      chmod 0755 /out/$program; \
    done

# As root and where the runner says: GitHub allows container actions neither USER nor WORKDIR.
FROM scratch
LABEL org.opencontainers.image.title="Sluice's GitHub Action" \
      org.opencontainers.image.source="https://github.com/sluice-dev/sluice" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
ENTRYPOINT ["/action"]
