{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-24.05";
  outputs = { self, nixpkgs }: let pkgs = nixpkgs.legacyPackages.x86_64-linux; in {
    packages.x86_64-linux.small = pkgs.buildEnv {
      name = "small";
      paths = with pkgs; [ bash coreutils openssh busybox ];
    };
  };
}
