package mesh.apps.dubbo2;

import java.util.Map;
import java.util.TreeMap;
import mesh.apps.Console;
import mesh.apps.Flags;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcException;

/**
 * A Dubbo 2.7 application: {@code --registry URL}; with {@code --label, --host, --port} it is a provider. The command
 * {@code call N} answers how many of N calls each provider took; a provider looks for others when it is first told to call.
 */
public final class Client {
    private Client() {}

    public static void main(String[] args) {
        Console console = new Console();
        Flags flags = new Flags(args);
        ApplicationConfig application = new ApplicationConfig("dubbo2");
        application.setQosEnable(false);
        RegistryConfig registry = new RegistryConfig(flags.require("registry"));
        registry.setUseAsConfigCenter(false);
        registry.setUseAsMetadataCenter(false);
        DubboBootstrap bootstrap = DubboBootstrap.getInstance().application(application).registry(registry);
        String label = flags.get("label", null);
        if (label != null) {
            ProtocolConfig protocol = new ProtocolConfig("dubbo", flags.number("port", 20880));
            protocol.setHost(flags.get("host", null));
            ServiceConfig<Echo> service = new ServiceConfig<>();
            service.setInterface(Echo.class);
            service.setRef(() -> label);
            service.setVersion("1.0");
            bootstrap.protocol(protocol).service(service);
        }
        ReferenceConfig<Echo> reference = new ReferenceConfig<>();
        reference.setInterface(Echo.class);
        reference.setVersion("1.0");
        reference.setCheck(false);
        reference.setTimeout(2000);
        reference.setRetries(0);
        // Also a provider calls over the network, and others as well as itself.
        reference.setScope("remote");
        if (label == null) {
            bootstrap.reference(reference);
        }
        bootstrap.start();
        Echo echo = label == null ? reference.get() : null;
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            if (echo == null) {
                echo = reference.get();
            }
            console.print(call(echo, Integer.parseInt(line.split(" ")[1])));
        }
        Runtime.getRuntime().halt(0);
    }

    private static String call(Echo echo, int count) {
        Map<String, Integer> answers = new TreeMap<>();
        for (int i = 0; i < count; i++) {
            String answer;
            try {
                answer = echo.who();
            } catch (RpcException failure) {
                failure.printStackTrace();
                answer = "failed";
            }
            answers.merge(answer, 1, Integer::sum);
        }
        return answers.toString();
    }
}
