package mesh.apps.dubbo;

import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import mesh.apps.Console;
import mesh.apps.Flags;
import mesh.apps.ShopBase;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;

/** A Dubbo 3 provider on one port: {@code --port, --label, --version, --group, --registry}. */
public final class Provider {
    private Provider() {}

    private static final class Service extends ShopBase implements DubboShop {
        Service(String label) {
            super(label);
        }

        @Override
        public CompletableFuture<String> later(int millis) {
            return CompletableFuture.supplyAsync(() -> slow(millis));
        }

        @Override
        public Map<String, String> headers() {
            Map<String, String> received = new HashMap<>();
            RpcContext.getServerAttachment().getObjectAttachments().forEach((name, value) -> {
                if (name.startsWith("x-")) {
                    received.put(name, String.valueOf(value));
                }
            });
            RpcContext.getServerResponseContext().setAttachment("x-reply", "done");
            RpcContext.getServerResponseContext().setAttachment("x-reply-user", received.get("x-user"));
            return received;
        }
    }

    public static void main(String[] args) {
        Console console = new Console();
        Flags flags = new Flags(args);
        ApplicationConfig application = new ApplicationConfig("dubbo-provider");
        application.setQosEnable(false);

        ProtocolConfig protocol = new ProtocolConfig("dubbo", flags.number("port", 20880));
        protocol.setHost(flags.get("host", null));

        ServiceConfig<DubboShop> service = new ServiceConfig<>();
        service.setInterface(DubboShop.class);
        service.setRef(new Service(flags.get("label", "v1")));
        service.setVersion(flags.get("version", null));
        service.setGroup(flags.get("group", null));

        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig(flags.get("registry", RegistryConfig.NO_AVAILABLE)))
                .protocol(protocol)
                .service(service)
                .start();
        console.provide();
    }
}
